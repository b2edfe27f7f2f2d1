# SPDX-License-Identifier: Apache-2.0
"""Exceptions by class, progress, the log."""
from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import types

import mneme
import pytest
from conftest import LAYER, random_rows
from mneme import _errors, _progress
from mneme._native import lib, text

BUILTINS = {
    mneme.InvalidArgument: ValueError, mneme.NotFound: KeyError, mneme.AlreadyExists: FileExistsError,
    mneme.PermissionDenied: PermissionError, mneme.ResourceExhausted: OSError, mneme.FailedPrecondition: RuntimeError,
    mneme.Busy: RuntimeError, mneme.OutOfRange: IndexError, mneme.Unimplemented: NotImplementedError,
    mneme.Internal: RuntimeError, mneme.Unavailable: OSError, mneme.DataLoss: OSError, mneme.Cancelled: mneme.Error,
}


def test_every_status_has_a_class():
    statuses = {int(getattr(lib, name)) for name in dir(lib) if name.startswith("MNEME_STATUS_")}
    assert set(_errors.CLASSES) == statuses == {int(status) for status in mneme.Status} - {0}
    for status in mneme.Status:
        assert text(lib.mneme_status_name(int(status))) == status.name
    for cls, builtin in BUILTINS.items():
        error = cls("what: expected this, got that")
        assert isinstance(error, builtin)
        assert isinstance(error, mneme.Error)
        assert str(error) == "what: expected this, got that"
        assert error.status.transient == error.transient
    assert set(BUILTINS) == set(_errors.CLASSES.values())
    assert mneme.Busy("x").transient
    assert not mneme.NotFound("x").transient


def test_errors_name_the_argument(folder, tmp_path):
    with pytest.raises(mneme.NotFound, match="no store") as raised:
        mneme.open(folder, must_exist=True)
    assert raised.value.status is mneme.Status.NOT_FOUND
    (tmp_path / "file").write_text("text")
    with pytest.raises(mneme.InvalidArgument, match="file"):
        mneme.open(tmp_path / "file")
    with pytest.raises(mneme.InvalidArgument, match=r"^threads: "):
        mneme.open(folder, threads=-1)


@pytest.fixture
def committed(store, memory):
    memory.commit()
    return store


def test_progress_by_a_function(committed):
    calls = []
    committed.verify(progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert calls[-1][0] == calls[-1][1] > 0


def test_progress_cancels(committed):
    with pytest.raises(mneme.Cancelled):
        committed.verify(progress=lambda done, total: False)

    def fail(done, total):
        raise ZeroDivisionError(f"at {done}")

    with pytest.raises(ZeroDivisionError, match="at"):
        committed.verify(progress=fail)
    due = committed.create("due", committed["m"].card, index="flat", segment_tokens=256)
    due.append(layer=LAYER, keys=random_rows(1, 600, 2, 64), values=random_rows(1, 600, 2, 64))
    with pytest.raises(ZeroDivisionError):
        due.maintain(progress=fail)
    due.maintain()
    assert committed.verify().ok


def test_control_c_ends_a_long_call(committed):
    reached = []

    def wait(done, total):
        if not reached:
            reached.append(done)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        committed.verify(progress=wait)
    assert committed.verify().ok


def test_a_bar(committed, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    committed.verify(progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    committed.verify(progress=True)
    assert capsys.readouterr().err.endswith("verify: 100 %\n")

    bars = []

    class Tqdm:
        n, total, closed = 0, None, False

        def __init__(self, **arguments):
            self.arguments = arguments
            bars.append(self)

        def update(self, count):
            self.n += count

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Tqdm))
    committed.verify(progress=True)
    assert bars[0].arguments == {"desc": "verify", "unit": "B", "unit_scale": True}
    assert bars[0].n == bars[0].total > 0
    assert bars[0].closed


def test_reporting_leaves_other_errors_alone():
    with pytest.raises(LookupError), _progress.reporting(None, "x", "y"):
        raise LookupError


def test_the_log_goes_to_logging(folder, card, caplog):
    """A device that is not there is one of the library's warnings."""
    with caplog.at_level(logging.WARNING, logger="mneme"), mneme.open(folder, device_budget="1GB", device=63):
        pass
    assert [record.name for record in caplog.records] == ["mneme"]
    assert "device" in caplog.text


def test_a_second_writer_of_a_memory_is_busy(store, card):
    """Appends of two threads meet: one of them is refused, and no token is lost."""
    memory = store.create("m", card, dtype="f32")
    rows = random_rows(1, 20000, 2, 64)
    busy, appended = [], []

    def run():
        for _ in range(5):
            try:
                memory.append(layer=LAYER, keys=rows, values=rows)
                appended.append(len(rows))
            except mneme.Busy as error:
                busy.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.info().next_token == sum(appended)
    assert all(error.transient for error in busy)
    assert busy
