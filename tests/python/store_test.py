# SPDX-License-Identifier: Apache-2.0
"""Stores, memories, snapshots: what they hold, how they close."""
from __future__ import annotations

import dataclasses
import gc
import logging
import os

import mneme
import numpy as np
import pytest
from conftest import LAYER, make_card, random_rows


def append(memory, tokens, seed=0):
    rows = random_rows(seed, tokens, 2, 64)
    memory.append(layer=LAYER, keys=rows, values=rows)


def test_a_memory_survives_the_store(folder, card):
    with mneme.open(folder) as store:
        memory = store.get("user", card) or store.create("user", card, dtype="i8", pinned=16)
        append(memory, 30)
        assert memory.commit() == 30
        assert memory.commit(mneme.SYNCED) == 30
    assert store.closed
    assert memory.closed
    with mneme.open(folder, mode="r", must_exist=True) as store:
        memory = store["user"]
        assert memory.card == card
        info = memory.info()
        assert (info.tokens, info.pinned_tokens, info.stored_dtype, info.keys_rotated) == (30, 16, "i8", False)
        assert (info.model_name, info.weights_fingerprint, info.index) == ("tiny", "sha256:1f", "auto")
        with pytest.raises(mneme.FailedPrecondition):
            store.create("another", card)


def test_a_store_is_a_mapping(store, card):
    names = ["b", "a", "ä", "user 42"]
    for name in names:
        append(store.create(name, card), 3)
    del name
    assert list(store) == list(store.keys()) == sorted(names)
    assert len(store) == 4
    assert "b" in store
    assert "c" not in store
    assert 7 not in store
    assert [memory.name for memory in store.values()] == sorted(names)
    assert [(name, memory.name) for name, memory in store.items()] == [(name, name) for name in sorted(names)]
    gc.collect()
    del store["b"]
    assert "b" not in store
    with pytest.raises(KeyError, match="b"):
        store["b"]
    with pytest.raises(mneme.NotFound):
        del store["b"]
    assert store.get("b") is None
    assert store.get("b", default=5) == 5
    store.drop("a", "ä")
    assert list(store) == ["user 42"]
    with pytest.raises(mneme.NotFound):
        store.drop("user 42", "gone")
    assert store.list() == (mneme.ListedMemory("user 42", 0, 0),)


def test_an_empty_memory_is_true(store, card):
    assert store
    assert store.create("empty", card)
    assert store.get("empty")


def test_an_open_memory_is_not_dropped(store, memory):
    with pytest.raises(mneme.FailedPrecondition):
        del store["m"]
    memory.close()
    memory.close()
    del store["m"]


def test_a_memory_that_nobody_holds_is_closed(store, card):
    append(store.create("m", card), 3)
    gc.collect()
    assert store.stats().open_memories == 0
    del store["m"]


def test_closing_loses_what_was_not_committed_and_says_so(folder, card, caplog):
    with mneme.open(folder) as store, caplog.at_level(logging.WARNING, logger="mneme"):
        with store.create("m", card) as memory:
            append(memory, 5)
            memory.commit()
            append(memory, 7)
        assert "7 tokens that were not committed" in caplog.text
        assert store["m"].info().next_token == 5


def test_what_is_closed_is_refused(folder, card):
    store = mneme.open(folder)
    memory = store.create("m", card)
    snapshot = memory.snapshot()
    store.close()
    store.close()
    for call in (memory.info, memory.commit, snapshot.memory.info, store.list, store.stats, lambda: store["m"]):
        with pytest.raises(mneme.InvalidArgument, match="closed"):
            call()
    assert "closed" in repr(store) + repr(memory)


def test_truncate_evict_fork_read(store, card):
    memory = store.create("m", card, dtype="f32", pinned=4)
    append(memory, 600, seed=3)
    rows = random_rows(3, 600, 2, 64)
    fork = memory.fork(at=500, name="fork")
    assert fork.info().next_token == 500
    assert fork.card is not memory.card
    assert fork.card == memory.card
    assert memory.fork(name="whole").info().next_token == 600
    with pytest.raises(mneme.AlreadyExists):
        memory.fork(name="fork")
    memory.truncate(550)
    memory.evict(keep=300)
    info = memory.info()
    assert (info.next_token, info.tokens, info.first_kept) == (550, 300, 254)
    read = memory.read(layer=LAYER, begin=254)
    np.testing.assert_array_equal(read.keys, rows[254:550])
    np.testing.assert_array_equal(read.positions, np.arange(254, 550))
    assert (read.token_ids == -1).all()
    assert memory.read(layer=LAYER, begin=0, end=4, want=["values"]).keys is None
    np.testing.assert_array_equal(memory.read(layer=LAYER, begin=0, end=4).values, rows[:4])
    for begin, end in ((0, 10), (549, 551), (-1, 3), (5, 3)):
        with pytest.raises(mneme.OutOfRange):
            memory.read(layer=LAYER, begin=begin, end=end)
    with pytest.raises(mneme.InvalidArgument, match="layer"):
        memory.read(layer=9)
    with pytest.raises(mneme.InvalidArgument, match="want"):
        memory.read(layer=LAYER, want=["rows"])
    memory.maintain()
    assert store.verify().ok


def test_bounds_and_budgets(folder, card):
    with mneme.open(folder, ram_budget="1 MB", disk_budget="10MiB", threads=2, background=True) as store:
        assert store.create("bounded", card, max_tokens=1024, segment_tokens=256).info().max_tokens == 1024
        assert store.create("bytes", card, max_bytes="1 MiB").info().max_tokens == 2**20 // (2 * 2 * 64 * 2 + 12)
        assert store.create("flat", card, index="flat").info().index == "flat"
    for wrong in ({"mode": "w"}, {"ram_budget": "4 bananas"}, {"ram_budget": -1}, {"threads": 2000}):
        with pytest.raises(mneme.InvalidArgument, match=next(iter(wrong))):
            mneme.open(folder, **wrong)


def test_stats_and_compact(store, memory):
    memory.commit()
    assert store.stats().memories == 1
    assert store.stats().appended_bytes > 0
    store.compact()
    with pytest.raises(dataclasses.FrozenInstanceError):
        store.stats().memories = 5


def test_damage_is_reported_and_raised(folder, card, caplog):
    with mneme.open(folder) as store:
        memory = store.create("m", card, segment_tokens=256)
        append(memory, 512)
        memory.commit()
        memory.maintain()
    blob = max((os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".blob")),
               key=os.path.getsize)
    with open(blob, "r+b") as file:
        file.seek(30000)
        file.write(b"damage")
    with mneme.open(folder, mode="r") as store:
        report = store.verify()
        assert not report.ok
        assert report.damaged_memories == 1
        assert 'memory "m"' in caplog.text
        damaged = store["m"]
        with pytest.raises(mneme.DataLoss) as raised:
            damaged.read(layer=LAYER)
        assert isinstance(raised.value, OSError)
        assert not raised.value.transient


def test_one_writer(folder, card):
    with mneme.open(folder) as store:
        append(store.create("m", card), 3)
        with pytest.raises(mneme.FailedPrecondition, match="another writer"):
            mneme.open(folder)
        with mneme.open(folder, mode="follow") as reader:
            assert list(reader) == ["m"]


def test_a_writer_that_nobody_holds_is_closed(folder, card):
    store = mneme.open(folder)
    memory = store.create("m", card)
    cycle = [store, memory]
    cycle.append(cycle)
    del store, memory, cycle
    gc.collect()
    mneme.open(folder).close()


def test_names_that_no_memory_can_have(store, card):
    assert store.create("\udc80", card).name in store  # a byte that is not UTF-8
    for name in ("", "n" * 256, "a\0b", 5):
        with pytest.raises(mneme.InvalidArgument, match="name"):
            store.create(name, card)


def test_graphs_want_a_device(store):
    with pytest.raises(mneme.FailedPrecondition, match="device"):
        store.graph()


def test_a_card_is_checked(store, memory, folder):
    with pytest.raises(mneme.FailedPrecondition, match="model_name differs"):
        store.open("m", make_card(name="another"))
    with pytest.raises(mneme.InvalidArgument, match="layer"):
        store.create("none", mneme.Card("m", "f"))


def test_metrics_are_text_for_prometheus(folder, card):
    with mneme.open(folder) as store:
        assert "_bucket" not in store.metrics()
    with mneme.open(folder, measure_latency=True) as store:
        append(store.create("m", card), 7)
        lines = store.metrics().splitlines()
        assert f"mneme_memories {len(store)}" in lines
        assert "mneme_append_seconds_count 1" in lines
