# SPDX-License-Identifier: Apache-2.0
"""attend, search and merge beside a reference in double precision."""
from __future__ import annotations

import pathlib

import mneme
import numpy as np
import pytest
from conftest import LAYER, make_card, random_rows
from reference import Head, attend_head

N, LOCAL, QUERIES, Q_HEADS, KV_HEADS, DIM = 300, 40, 3, 4, 2, 64


class Case:
    """A memory with rows, a local window and queries; stored as f32, so that the reference has the same numbers."""

    def __init__(self, store, value_dim=DIM, soft_cap=0.0, pinned=0, dtype=np.float32):
        card = make_card(Q_HEADS, KV_HEADS, DIM, value_dim, soft_cap=soft_cap)
        self.soft_cap, self.pinned = soft_cap, pinned
        self.memory = store.create("case", card, dtype="f32", pinned=pinned)
        self.keys = random_rows(11, N, KV_HEADS, DIM, dtype=dtype)
        self.values = random_rows(12, N, KV_HEADS, value_dim, dtype=dtype)
        self.memory.append(layer=LAYER, keys=self.keys, values=self.values)
        self.local_keys = random_rows(13, LOCAL, KV_HEADS, DIM, dtype=dtype)
        self.local_values = random_rows(14, LOCAL, KV_HEADS, value_dim, dtype=dtype)
        self.query = random_rows(15, QUERIES, Q_HEADS, DIM, dtype=dtype)

    def attend(self, **arguments):
        return self.memory.attend(layer=LAYER, query=self.query, local_keys=self.local_keys,
                                  local_values=self.local_values, **arguments)

    def check(self, result, *, heads=None, fusion="joint", seen=None, end=N, decay_beyond=1.0, tolerance=2e-5):
        heads = heads or [Head() for _ in range(Q_HEADS)]
        if seen is None:
            seen = np.arange(LOCAL)[None, :] <= np.arange(QUERIES)[:, None] + LOCAL - QUERIES
        for query in range(QUERIES):
            position = end + LOCAL - QUERIES + query
            for number, head in enumerate(heads):
                kv = number // (Q_HEADS // KV_HEADS)
                wide = [a[:, kv].astype(np.float64) for a in (self.keys[:end], self.values[:end], self.local_keys,
                                                               self.local_values)]
                output, log_sum_exp, chosen, mass = attend_head(
                    self.query[query, number].astype(np.float64), wide[0], wide[1], position - np.arange(end),
                    np.arange(end) < self.pinned, wide[2], wide[3], seen[query], head, fusion, self.soft_cap,
                    decay_beyond)
                np.testing.assert_allclose(result.output[query, number].astype(np.float64), output, atol=tolerance)
                np.testing.assert_allclose(result.log_sum_exp[query, number], log_sum_exp, rtol=1e-5)
                np.testing.assert_allclose(result.memory_mass[query, number], mass, atol=1e-5)
                found = result.tokens[query, number]
                assert found[found >= 0].tolist() == chosen.tolist()


def test_joint(store):
    case = Case(store, value_dim=48)
    case.check(case.attend())


@pytest.mark.parametrize("fusion", ["gated", "memory_only", "local_only"])
def test_fusions(store, fusion):
    case = Case(store)
    gates = [-1.0, 0.0, 0.5, 2.0]
    case.check(case.attend(fusion=fusion, gate=gates), fusion=fusion, heads=[Head(gate=gate) for gate in gates])


def test_rules_of_each_head(store):
    case = Case(store, soft_cap=3.0, pinned=16)
    top_k, bias, decay, scale = [0, 1, 7, 300], [0.0, 1.0, -1.0, 0.5], [0.0, 0.1, 0.2, 0.0], [0.1, 0.2, 0.3, 0.05]
    result = case.attend(top_k=top_k, memory_bias=bias, decay=np.array(decay), decay_beyond=4.0, scale=scale)
    assert result.tokens.shape == (QUERIES, Q_HEADS, 300)
    heads = [Head(*rules) for rules in zip(top_k, bias, decay, scale)]
    case.check(result, heads=heads, decay_beyond=4.0)


def test_one_number_stands_for_all_heads(store):
    case = Case(store)
    for name, value in (("memory_bias", 0.5), ("decay", 0.1), ("scale", 0.2), ("gate", 1)):
        one = case.attend(**{name: value}).output
        np.testing.assert_array_equal(one, case.attend(**{name: [value] * Q_HEADS}).output)
        np.testing.assert_array_equal(one, case.attend(**{name: np.float32(value)}).output)
    np.testing.assert_array_equal(case.attend(top_k=5).output, case.attend(top_k=[5] * Q_HEADS).output)
    assert (case.attend(top_k=0).memory_mass == 0).all()


def test_masks(store):
    case = Case(store)
    columns, rows = np.arange(LOCAL)[None, :], np.arange(QUERIES)[:, None]
    window = (columns <= rows + LOCAL - QUERIES) & (columns > rows + LOCAL - QUERIES - 7)
    case.check(case.attend(mask="sliding_window", mask_window=7), seen=window)
    case.check(case.attend(mask="none"), seen=np.ones((QUERIES, LOCAL), bool))
    case.check(case.attend(mask_offset=5), seen=columns <= rows + 5)
    bits = np.random.default_rng(3).random((QUERIES, LOCAL)) < 0.5
    case.check(case.attend(mask=bits), seen=bits)


def test_visible_tokens_and_snapshots(store):
    case = Case(store)
    case.check(case.attend(memory_end=120), end=120)
    with case.memory.snapshot() as snapshot:
        before = case.attend()
        case.memory.append(layer=LAYER, keys=case.query[:, :2], values=case.local_values[:3, :, :])
        np.testing.assert_array_equal(case.attend(snapshot=snapshot).output, before.output)
        assert case.memory.search(layer=LAYER, query=100 * case.query, top_k=303).tokens.max() == N + 2
        assert case.memory.search(layer=LAYER, query=case.query, top_k=300, snapshot=snapshot).tokens.max() == N - 1
    assert (case.attend(memory_begin=290).tokens.max(axis=-1) >= 290).all()
    assert np.isin(case.attend(memory_begin=290).tokens, [-1, *range(290, N + 3)]).all()


def test_details_are_left_out_where_they_are_not_wanted(store):
    case = Case(store)
    result = case.attend(want=())
    assert (result.log_sum_exp, result.tokens, result.scores, result.memory_mass) == (None,) * 4
    np.testing.assert_array_equal(result.output, case.attend().output)
    result = case.attend(want=["scores"])
    assert result.scores.shape == (QUERIES, Q_HEADS, 32)
    assert result.tokens is None


def test_search(store):
    case = Case(store, value_dim=48)
    found = case.memory.search(layer=LAYER, query=case.query, top_k=5, want=("scores", "keys", "values"))
    for query in range(QUERIES):
        for head in range(Q_HEADS):
            scores = 0.125 * case.keys[:, head // 2].astype(np.float64) @ case.query[query, head]
            best = np.argsort(-scores)[:5]
            assert found.tokens[query, head].tolist() == best.tolist()
            np.testing.assert_allclose(found.scores[query, head], scores[best], rtol=1e-5)
            np.testing.assert_array_equal(found.keys[query, head], case.keys[best, head // 2])
            np.testing.assert_array_equal(found.values[query, head], case.values[best, head // 2])
    assert case.memory.search(layer=LAYER, query=case.query, want=()).scores is None


def test_position_policies(store):
    frequencies = tuple(10000.0 ** (-i / 32) for i in range(32))
    card = make_card(rotary=mneme.Rotary(frequencies))
    memory = store.create("rotary", card, dtype="f32")
    memory.append(layer=LAYER, keys=random_rows(1, 50, 2, 64), values=random_rows(2, 50, 2, 64))
    query = random_rows(3, 2, 4, 64)

    def logits(**arguments):
        return memory.search(layer=LAYER, query=query, top_k=50, **arguments)

    def turned(rows, angle):
        half = rows.astype(np.float64).reshape(*rows.shape[:-1], 2, 32)
        cos, sin = np.cos(angle * np.array(frequencies)), np.sin(angle * np.array(frequencies))
        return np.concatenate([half[..., 0, :] * cos - half[..., 1, :] * sin,
                               half[..., 1, :] * cos + half[..., 0, :] * sin], axis=-1)

    found = logits(position_policy="fixed_distance", distance=20.0)
    keys = memory.read(layer=LAYER).keys
    expected = 0.125 * np.einsum("qhd,nhd->qhn", turned(query, 20.0), np.repeat(keys, 2, axis=1))
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=-1), atol=1e-4)
    found = logits(position_policy="window_start", query_local_positions=[20, 20])
    np.testing.assert_allclose(found.scores, -np.sort(-expected, axis=-1), atol=1e-4)
    near = logits(position_policy="clamped", distance=[1e9] * 4, query_positions=[60, 61])
    assert not np.allclose(near.scores, logits().scores)


def test_a_batch_of_memories(store):
    card = make_card()
    memories = []
    for number in range(3):
        memories.append(store.create(f"batch-{number}", card, dtype="f32"))
        rows = random_rows(number, 60 + number, 2, 64)
        memories[number].append(layer=LAYER, keys=rows, values=rows)
    query, local = random_rows(7, 6, 4, 64), random_rows(8, 9, 2, 64)
    packed = [memories[0], None, memories[2], memories[0]]
    result = mneme.attend(packed, layer=LAYER, query=query, query_offsets=[0, 1, 3, 4, 6], local_keys=local,
                          local_values=local, local_offsets=[0, 2, 4, 5, 9], memory_end=[50, 0, 62, 60])
    for i, (a, b, c, d) in enumerate([(0, 1, 0, 2), (1, 3, 2, 4), (3, 4, 4, 5), (4, 6, 5, 9)]):
        alone = mneme.attend([packed[i]], layer=LAYER, query=query[a:b], local_keys=local[c:d],
                             local_values=local[c:d], memory_end=[[50, 0, 62, 60][i]])
        np.testing.assert_allclose(result.output[a:b], alone.output, atol=1e-6)
        np.testing.assert_array_equal(result.tokens[a:b], alone.tokens)
    assert mneme.search(packed, layer=LAYER, query=query, query_offsets=[0, 1, 3, 4, 6]).tokens[1].max() == -1


def test_a_sequence_that_fails_does_not_fail_the_others(folder):
    rows, query = random_rows(1, 512, 2, 64), random_rows(2, 2, 4, 64)
    with mneme.open(folder) as store:
        for name, tokens in (("good", 10), ("damaged", 512)):
            memory = store.create(name, make_card(), segment_tokens=256)
            memory.append(layer=LAYER, keys=rows[:tokens], values=rows[:tokens])
            memory.commit()
    blob = max(pathlib.Path(folder).glob("*.blob"), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    for at in range(20000, len(content) - 1000, 4096):
        content[at] ^= 1
    blob.write_bytes(content)
    with mneme.open(folder) as store:
        memories = [store["good"], store["damaged"]]
        result = mneme.attend(memories, layer=LAYER, query=query, query_offsets=[0, 1, 2], top_k=512, statuses=True)
        assert result.statuses == (mneme.Status.OK, mneme.Status.DATA_LOSS)
        assert (result.output[1] == 0).all()
        assert np.abs(result.output[0]).max() > 0
        with pytest.raises(mneme.DataLoss):
            mneme.attend(memories, layer=LAYER, query=query, query_offsets=[0, 1, 2], top_k=512)


def test_queries_must_be_finite(store):
    case = Case(store)
    case.query[1, 2, 3] = np.nan
    with pytest.raises(mneme.InvalidArgument, match=r"^query: expected finite numbers"):
        case.attend()


def test_merge_joins_what_was_attended_apart(store):
    case = Case(store)
    memory, local = case.attend(fusion="memory_only"), case.attend(fusion="local_only")
    joint = case.attend()
    merged = mneme.merge(memory.output, memory.log_sum_exp, local.output, local.log_sum_exp)
    np.testing.assert_allclose(merged.output, joint.output, atol=1e-6)
    np.testing.assert_allclose(merged.log_sum_exp, joint.log_sum_exp, rtol=1e-6)
    gated = mneme.merge(memory.output, None, local.output, None, gate=[0.5] * Q_HEADS, out=local.output)
    assert gated.output is local.output
    assert gated.log_sum_exp is None
    np.testing.assert_allclose(gated.output, case.attend(fusion="gated", gate=0.5).output, atol=1e-6)


def loss(case, weights, heads, fusion):
    """Sum of outputs and log-sum-exps by the reference, weighed; every row of the memory is retrieved."""
    seen, total = np.arange(LOCAL)[None, :] <= np.arange(QUERIES)[:, None] + LOCAL - QUERIES, 0.0
    for query in range(QUERIES):
        for number, head in enumerate(heads):
            kv = number // (Q_HEADS // KV_HEADS)
            output, log_sum_exp, _, _ = attend_head(
                case.query[query, number], case.keys[:, kv], case.values[:, kv], np.ones(N), np.zeros(N, bool),
                case.local_keys[:, kv], case.local_values[:, kv], seen[query], head, fusion)
            total += weights[0][query, number] @ output + weights[1][query, number] * log_sum_exp
    return total


@pytest.mark.parametrize("fusion", ["joint", "gated"])
def test_backward(store, fusion):
    """Central differences of the reference in double precision, at some numbers of every input."""
    case = Case(store)
    rules = {"memory_bias": [0.1, -0.2, 0.3, 0.0], "gate": [0.5, -1.0, 0.0, 2.0], "scale": [0.1, 0.2, 0.12, 0.15]}
    weights = random_rows(21, QUERIES, Q_HEADS, DIM), random_rows(22, QUERIES, Q_HEADS)
    result = case.attend(fusion=fusion, top_k=N, differentiable=True, **rules)
    gradients = result.backward(weights[0], log_sum_exp_gradient=weights[1])
    for name in ("query", "keys", "values", "local_keys", "local_values"):
        setattr(case, name, getattr(case, name).astype(np.float64))
    heads = [Head(N, rules["memory_bias"][h], 0.0, rules["scale"][h], rules["gate"][h]) for h in range(Q_HEADS)]

    def slope(change):
        change(1e-5)
        above = loss(case, weights, heads, fusion)
        change(-2e-5)
        below = loss(case, weights, heads, fusion)
        change(1e-5)
        return (above - below) / 2e-5

    random = np.random.default_rng(23)
    for name in ("query", "local_keys", "local_values"):
        array, gradient = getattr(case, name), getattr(gradients, name)
        for _ in range(8):
            at = tuple(random.integers(extent) for extent in array.shape)
            np.testing.assert_allclose(gradient[at], slope(lambda d: array.__setitem__(at, array[at] + d)), atol=2e-4)
    for name, field in (("memory_bias", "bias"), ("gate", "gate"), ("scale", "scale")):
        for number, head in enumerate(heads):
            expected = slope(lambda d: setattr(head, field, getattr(head, field) + d))
            np.testing.assert_allclose(getattr(gradients, name)[number], expected, atol=2e-3)
    assert gradients.memory_query is None
    assert result.backward(weights[0], want=["gate"]).query is None


def test_backward_wants_a_differentiable_call(store):
    case = Case(store)
    with pytest.raises(mneme.InvalidArgument, match="differentiable"):
        case.attend().backward(case.query)
    result = case.attend(differentiable=True, want=())
    for arguments, word in (({"want": ["keys"]}, "want"), ({"log_sum_exp_gradient": [1.0]}, "log_sum_exp_gradient")):
        with pytest.raises(mneme.InvalidArgument, match=word):
            result.backward(case.query, **arguments)
    with pytest.raises(mneme.InvalidArgument, match="output_gradient"):
        result.backward(case.query[:2])


@pytest.mark.parametrize(("arguments", "word"), [
    ({"top_k": [1, 2]}, "top_k"), ({"gate": [1.0] * 5}, "gate"), ({"query_positions": [1]}, "query_positions"),
    ({"mask": "diagonal"}, "mask"), ({"mask": np.ones((2, LOCAL), bool)}, "mask"), ({"mask": np.ones(3)}, "mask"),
    ({"mask": np.ones((QUERIES, 8), bool)}, "mask_bits_stride"), ({"fusion": "fused"}, "fusion"),
    ({"position_policy": "near"}, "position_policy"), ({"want": ["logits"]}, "want"), ({"scale": -1.0}, "scale"),
    ({"top_k": [1.5] * 4}, "top_k"), ({"top_k": -1}, "top_k"), ({"distance": "far"}, "distance"),
    ({"memory_begin": -1}, "memory_begin"), ({"out": np.empty((3, 4, 63), np.float32)}, "output"),
])
def test_wrong_arguments_are_named(store, arguments, word):
    with pytest.raises(mneme.InvalidArgument, match=word):
        Case(store).attend(**arguments)
