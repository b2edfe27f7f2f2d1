# SPDX-License-Identifier: Apache-2.0
"""Backups of a store, and stores of backups."""
from __future__ import annotations

import pathlib
import threading

import mneme
import numpy as np
import pytest
from conftest import LAYER, random_rows


def test_a_backup_becomes_a_store_again(store, memory, tmp_path):
    memory.commit()
    backups, restored = tmp_path / "backups", tmp_path / "restored"
    told = []
    made = store.backup(backups, progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert (made.id, made.damaged) == (1, False)
    assert made.copied_bytes >= made.bytes > 100 * 2 * 64 * 2 * 2
    memory.append(layer=LAYER, keys=random_rows(3, 50, 2, 64), values=random_rows(4, 50, 2, 64))
    memory.commit()
    assert store.backup(str(backups)).id == 2
    assert [backup.id for backup in mneme.backups(backups)] == [1, 2]
    mneme.verify_backup(backups, backup=1)
    mneme.restore(backups, restored, backup=1)
    with mneme.open(restored, must_exist=True) as other:
        assert other.verify().ok
        assert other["m"].info().tokens == 100
        rows = memory.read(layer=LAYER, end=100)
        assert np.array_equal(other["m"].read(layer=LAYER).keys, rows.keys)
    with pytest.raises(mneme.AlreadyExists):
        mneme.restore(backups, restored)
    assert store.backup(backups, keep=1).id == 3
    assert [backup.id for backup in mneme.backups(backups)] == [3]


def test_what_cannot_be(store, memory, folder, tmp_path):
    memory.commit()
    for call in (mneme.backups, mneme.verify_backup, lambda path: mneme.restore(path, tmp_path / "restored")):
        with pytest.raises(mneme.NotFound):
            call(tmp_path / "none")
    with pytest.raises(mneme.InvalidArgument):
        store.backup(folder)
    with mneme.open(folder, mode="r") as reader, pytest.raises(mneme.FailedPrecondition):
        reader.backup(tmp_path / "backups")
    store.backup(tmp_path / "backups")
    for path in pathlib.Path(tmp_path / "backups" / "private").rglob("*.log"):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
    with pytest.raises(mneme.DataLoss):
        mneme.verify_backup(tmp_path / "backups")
    with pytest.raises(mneme.DataLoss):
        mneme.restore(tmp_path / "backups", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_other_threads_commit_meanwhile(store, memory, tmp_path):
    stop = threading.Event()

    def work():
        while not stop.is_set():
            memory.append(layer=LAYER, keys=random_rows(5, 10, 2, 64), values=random_rows(6, 10, 2, 64))
            memory.commit()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            store.backup(tmp_path / "backups")
    finally:
        stop.set()
        thread.join()
    mneme.restore(tmp_path / "backups", tmp_path / "restored")
    with mneme.open(tmp_path / "restored") as other:
        assert other.verify().ok
        assert other["m"].info().tokens % 10 == 0
