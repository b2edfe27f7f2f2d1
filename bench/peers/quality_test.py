#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quality.py on small cases against plain loops over numbers, as one would write them from the definitions. Exits with
77 where there is no numpy."""

import concurrent.futures
import math
import sys
import types
import unittest

try:
    import numpy as np

    import quality
except ImportError:
    sys.exit(77)

HEADS, GROUP, ROWS, DIM, STEPS, K, LOCAL = 2, 3, 70, 8, 2, 5, 4
SCALE = 0.7


def score(query, key):
    return sum(float(a) * float(b) for a, b in zip(query, key))


def attention(rows):
    """rows: [(score, value)]."""
    weights = [math.exp(SCALE * s) for s, _ in rows]
    return [sum(w * float(v[j]) for w, (_, v) in zip(weights, rows)) / sum(weights) for j in range(DIM)]


def error(pairs):
    difference = sum((float(a) - b) ** 2 for computed, exact in pairs for a, b in zip(computed, exact))
    return math.sqrt(difference / sum(b ** 2 for _, exact in pairs for b in exact))


class QualityTest(unittest.TestCase):
    def setUp(self):
        quality.BLOCK_ROWS = 16  # several, and a part of one
        random = np.random.default_rng(5)
        self.data = types.SimpleNamespace(
            heads=HEADS, rows=ROWS, dim=DIM, scale=SCALE,
            keys=random.standard_normal((HEADS, ROWS, DIM)).astype(np.float16),
            values=(1 + random.standard_normal((HEADS, ROWS, DIM))).astype(np.float16))
        self.queries = random.standard_normal((STEPS, HEADS * GROUP, DIM)).astype(np.float32)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            self.judge = quality.Judge(self.data, self.queries, K, LOCAL, pool)

    def each(self):
        """Of each query: where it is, its head's values, and all rows as (score, row), best first."""
        for step in range(STEPS):
            for head in range(HEADS * GROUP):
                keys, values = self.data.keys[head // GROUP], self.data.values[head // GROUP]
                scores = [score(self.queries[step, head], key) for key in keys]
                yield (step, head), values, scores, sorted(range(ROWS), key=lambda row: -scores[row])

    def expected(self, tokens, outputs, local):
        """Recall, mass, and the errors of `outputs` from attention over the k best and over all rows."""
        recall, mass, best, everything = [], [], [], []
        for at, values, scores, order in self.each():
            rows = set(int(row) for row in tokens[at] if row >= 0)
            recall.append(len(rows & set(order[:K])) / K)
            mass.append(sum(math.exp(SCALE * scores[row]) for row in rows) / sum(math.exp(SCALE * s) for s in scores))
            beside = [(scores[row], values[row]) for row in range(LOCAL)] if local else []
            best.append((outputs[at], attention([(scores[row], values[row]) for row in order[:K]] + beside)))
            everything.append((outputs[at], attention([(scores[row], values[row]) for row in range(ROWS)] + beside)))
        return {"recall": sum(recall) / len(recall), "mass": sum(mass) / len(mass), "error_best": error(best),
                "error_all": error(everything)}

    def assert_same(self, judged, expected, places):
        self.assertEqual(judged.keys(), expected.keys())
        for name, value in expected.items():
            self.assertAlmostEqual(judged[name], value, places, name)

    def best_tokens(self):
        tokens = np.empty((STEPS, HEADS * GROUP, K), np.int64)
        for at, _, _, order in self.each():
            tokens[at] = order[:K]
        return tokens

    def outputs_of(self, tokens, local):
        outputs = np.empty((STEPS, HEADS * GROUP, DIM))
        for at, values, scores, _ in self.each():
            rows = sorted(set(int(row) for row in tokens[at] if row >= 0))
            outputs[at] = attention([(scores[row], values[row]) for row in [*rows, *(range(LOCAL) if local else [])]])
        return outputs

    def test_the_k_best_themselves(self):
        tokens = self.best_tokens()
        expected = self.expected(tokens, self.outputs_of(tokens, False), False)
        best = self.judge.best()
        self.assertAlmostEqual(best["mass"], expected["mass"], 12)
        self.assertAlmostEqual(best["error_all"], expected["error_all"], 12)
        self.assertGreater(best["error_all"], 0.01)
        self.assertTrue(0.1 < best["mass"] < 0.9)

    def test_a_search_that_finds_the_k_best(self):
        tokens = self.best_tokens()[:, :, ::-1].copy()
        judged = self.judge.judge(tokens, None, False)
        self.assertEqual(judged["recall"], 1)
        self.assertLess(judged["error_best"], 1e-6)
        self.assertGreater(judged["error_best"], 0)  # f32
        self.assert_same(judged, self.expected(tokens, self.outputs_of(tokens, False), False), 6)

    def test_a_search_that_misses_some(self):
        tokens = self.best_tokens()
        for (step, head), _, _, order in self.each():
            tokens[step, head, 1] = order[K + 2]  # another row
            tokens[step, head, 3] = -1            # none
            if head % 2:
                tokens[step, head, 4] = order[0]  # one that it has
        judged = self.judge.judge(tokens, None, False)
        self.assertAlmostEqual(judged["recall"], 0.5)
        self.assert_same(judged, self.expected(tokens, self.outputs_of(tokens, False), False), 6)

    def test_a_search_that_finds_nothing(self):
        judged = self.judge.judge(np.full((STEPS, HEADS * GROUP, K), -1), None, False)
        self.assertEqual(judged, {"recall": 0, "mass": 0, "error_best": 1, "error_all": 1})

    def test_attention_with_local_rows(self):
        tokens = self.best_tokens()
        exact = self.outputs_of(tokens, True)
        outputs = (1.25 * exact).astype(np.float32)
        judged = self.judge.judge(tokens, outputs, True)
        self.assertAlmostEqual(judged["error_best"], 0.25, 6)
        self.assert_same(judged, self.expected(tokens, outputs, True), 9)
        self.assertGreater(self.judge.judge(tokens, exact, False)["error_best"], 0.01)  # not the task without them

    def test_attention_to_all_rows(self):
        every = np.broadcast_to(np.arange(ROWS), (STEPS, HEADS * GROUP, ROWS))
        judged = self.judge.judge(None, self.outputs_of(every, False), False)
        self.assertLess(judged.pop("error_all"), 1e-12)
        self.assertEqual(judged, {"recall": None, "mass": 1.0, "error_best": None})

    def test_scores_that_a_float_cannot_hold_the_exponential_of(self):
        self.queries *= 2000
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            judge = quality.Judge(self.data, self.queries, K, LOCAL, pool)
        tokens = self.best_tokens()
        judged = judge.judge(tokens, None, False)
        self.assertAlmostEqual(judged["mass"], 1, 9)
        self.assertLess(judged["error_all"], 1e-3)


if __name__ == "__main__":
    unittest.main()
