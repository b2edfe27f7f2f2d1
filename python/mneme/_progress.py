# SPDX-License-Identifier: Apache-2.0
"""Progress of long calls: a bar, or the caller's own function. Ctrl-C ends such a call in any case."""
from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Union

from mneme._native import ffi

#: What long calls take as `progress`: True shows a bar, a function gets (done, total), total 0 while it is not known.
#: It cancels the call by returning False or by raising.
Progress = Union[bool, Callable[[int, int], object], None]


class _Bar(Protocol):
    def update(self, done: int, total: int) -> None: ...
    def close(self) -> None: ...


class _PlainBar:
    """A percentage on one line of stderr. Draws nothing where stderr is no terminal."""

    SECONDS = 0.2  # between two drawings

    def __init__(self, description: str) -> None:
        self._description = description
        self._drawn = 0.0
        self._width = 0

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self._drawn < self.SECONDS and done != total):
            return
        self._drawn = now
        share = f"{100 * done // total:3d} %" if total > 0 else str(done)
        line = f"{self._description}: {share}"
        self._width = max(self._width, len(line))
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()

    def close(self) -> None:
        if self._width > 0:
            sys.stderr.write("\n")


class _TqdmBar:
    def __init__(self, tqdm: Any, description: str, unit: str) -> None:
        self._bar = tqdm(desc=description, unit=unit, unit_scale=True)

    def update(self, done: int, total: int) -> None:
        self._bar.total = total or None
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _make_bar(description: str, unit: str) -> _Bar:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _PlainBar(description)
    return _TqdmBar(tqdm, description, unit)


class _Report:
    """Takes the calls of one long call of the library. `error` is what the caller's function raised."""

    def __init__(self, function: Callable[[int, int], object] | None) -> None:
        self._function = function
        self.error: BaseException | None = None

    def __call__(self, done: int, total: int) -> int:
        try:
            # Without a function, too: Python runs signal handlers here, and Ctrl-C raises.
            if self._function is not None and self._function(done, total) is False:
                return 1
        except BaseException as error:  # also KeyboardInterrupt: the library must return first
            self.error = error
            return 1
        return 0


def _on_error(_kind: object, error: BaseException, _trace: object) -> int:
    """Cancels where the interpreter itself raised between C and Python, as it does for a signal."""
    _pending.append(error)
    return 1


_pending: list[BaseException] = []


def _report(context: Any, done: int, total: int) -> int:
    result: int = ffi.from_handle(context)(done, total)
    return result


_REPORT = ffi.callback("int(void*, int64_t, int64_t)", _report, error=1, onerror=_on_error)


@contextlib.contextmanager
def reporting(progress: Progress, description: str, unit: str) -> Iterator[tuple[Any, Any]]:
    """Gives the callback and the context for one call of the library.

    Raises what the caller's function raised, in place of the library's own "cancelled".
    """
    bar = _make_bar(description, unit) if progress is True else None
    function = bar.update if bar is not None else progress if callable(progress) else None
    report = _Report(function)
    context = ffi.new_handle(report)
    try:
        yield _REPORT, context
    except Exception:
        if report.error is not None:
            raise report.error from None
        if _pending:
            raise _pending.pop() from None
        raise
    finally:
        if bar is not None:
            bar.close()
