# SPDX-License-Identifier: Apache-2.0
"""Snapshots: a memory as it was at one moment."""
from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from mneme._errors import check
from mneme._handles import Handle, StoreHandle, finalize_child
from mneme._native import ffi, lib

if TYPE_CHECKING:
    from types import TracebackType

    from mneme._memory import Memory


class Snapshot:
    """Fixes what readers of a memory see, whatever is appended, truncated or evicted meanwhile.

    Made by `Memory.snapshot`. A context manager, which gives it back at its end.
    """

    def __init__(self, memory: Memory) -> None:
        out = ffi.new("mneme_snapshot**")
        check(lib.mneme_snapshot_create(memory._pointer(), out))
        self._memory = memory
        self._store_handle: StoreHandle = memory._store_handle
        self._handle: Handle = self._store_handle.adopt("snapshot", out[0])
        self._finalizer = weakref.finalize(self, finalize_child, self._store_handle, self._handle)

    @property
    def memory(self) -> Memory:
        """The memory that it is a snapshot of."""
        return self._memory

    def release(self) -> None:
        """Gives the snapshot back. A call that reads it keeps it to its end. Does nothing the second time."""
        self._store_handle.give_back(self._handle)

    def _pointer(self) -> Any:
        return self._handle.get()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.release()
