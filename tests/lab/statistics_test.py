# SPDX-License-Identifier: Apache-2.0
"""The statistics of mneme-lab against numbers that were worked out elsewhere: by hand, or published."""
from __future__ import annotations

import math

import numpy as np
import pytest
from mneme_lab import bootstrap, intrinsic_dimension, longppl, retrieval_heads, scaling_law

# Loss by context length, from the repository of arXiv 2502.01481.
CONTEXTS = [8, 12, 16, 24, 32, 48, 64, 128, 256, 384, 512, 768]
LOSSES = [3.9531, 3.5390, 3.28283, 2.99618, 2.83873, 2.65246, 2.53125, 2.36169, 2.21765, 2.14698, 2.12716, 2.08389]


class TestBootstrap:
    def test_two_blocks(self):
        """Means of two blocks drawn with replacement: 1 with probability 1/4, 2 with 1/2, 3 with 1/4."""
        interval = bootstrap.mean_interval([1.0] * 4 + [3.0] * 4, block=4)
        assert interval == bootstrap.Interval(2.0, 1.0, 3.0)
        assert bootstrap.mean_interval([1.0] * 4 + [3.0] * 4, block=4, level=0.4) == bootstrap.Interval(2.0, 2.0, 2.0)

    def test_a_shorter_last_block_counts_by_its_tokens(self):
        sums, counts = bootstrap.block_sums(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 2)
        assert sums.tolist() == [3.0, 7.0, 5.0]
        assert counts.tolist() == [2.0, 2.0, 1.0]
        assert bootstrap.mean_interval([0.0, 0.0, 3.0], block=2).mean == 1.0
        # A drawn block brings its sum and its tokens: no mean is outside of the blocks' own.
        assert bootstrap.mean_interval([1.0] * 4 + [3.0], block=4) == bootstrap.Interval(1.4, 1.0, 3.0)

    def test_independent_tokens_have_the_normal_interval(self):
        values = np.random.default_rng(5).normal(2.0, 1.0, 4000)
        interval = bootstrap.mean_interval(values, block=1)
        half = 1.959964 * values.std() / math.sqrt(len(values))
        assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
        assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)

    def test_dependent_tokens_have_a_wider_interval(self):
        """64 tokens of a lemma share their loss: as many values as lemmas are independent."""
        values = np.repeat(np.random.default_rng(5).normal(2.0, 1.0, 64), 64)
        by_token, by_block = (bootstrap.mean_interval(values, block=block) for block in (1, 64))
        assert (by_block.high - by_block.low) / (by_token.high - by_token.low) == pytest.approx(8.0, rel=0.1)

    def test_what_is_hard_for_both_cancels_out(self):
        hard = np.random.default_rng(5).normal(2.0, 1.0, 1024)
        interval = bootstrap.paired_interval(hard, hard - 0.25, block=16)
        assert interval.low == pytest.approx(0.25, abs=1e-12)
        assert interval.high == pytest.approx(0.25, abs=1e-12)

    def test_the_same_seed_gives_the_same_interval(self):
        values = np.random.default_rng(5).normal(size=1000)
        assert bootstrap.mean_interval(values, block=8, seed=1) == bootstrap.mean_interval(values, block=8, seed=1)
        assert bootstrap.mean_interval(values, block=8, seed=1) != bootstrap.mean_interval(values, block=8, seed=2)

    def test_refusals(self):
        for losses in ([], [[1.0, 2.0]]):
            with pytest.raises(ValueError, match="losses: expected one dimension"):
                bootstrap.mean_interval(losses)
        with pytest.raises(ValueError, match="at least two blocks"):
            bootstrap.mean_interval([1.0, 2.0], block=2)
        with pytest.raises(ValueError, match="block: expected at least 1"):
            bootstrap.mean_interval([1.0, 2.0], block=0)
        with pytest.raises(ValueError, match="second: expected the shape"):
            bootstrap.paired_interval([1.0, 2.0], [1.0])


class TestScalingLaw:
    def test_the_repositorys_numbers(self):
        law = scaling_law.fit(CONTEXTS, LOSSES)
        assert law.gamma == pytest.approx(0.587, abs=5e-4)
        assert law.scale == pytest.approx(6.79, abs=5e-3)
        assert law.floor == pytest.approx(1.950, abs=5e-4)
        assert law.r_squared == pytest.approx(0.99983, abs=5e-6)

    def test_three_points_are_met_exactly(self):
        """Memorizing Transformers: perplexity 2.26, 2.23, 2.21 with 65K, 131K, 262K tokens of memory."""
        tokens, losses = [65536, 131072, 262144], np.log([2.26, 2.23, 2.21])
        law = scaling_law.fit(tokens, losses)
        assert law.gamma == pytest.approx(0.57, abs=5e-3)
        assert math.exp(law.floor) == pytest.approx(2.17, abs=5e-3)
        assert law.predict(tokens) == pytest.approx(losses, abs=1e-9)

    def test_an_offset_is_found_again(self):
        memory = np.array([0.0, 512, 2048, 8192, 32768])
        law = scaling_law.fit(memory, 1.0 + 9.0 * (memory + 768) ** -0.4, offset=768)
        assert (law.gamma, law.scale, law.floor) == pytest.approx((0.4, 9.0, 1.0), rel=1e-5)
        assert law.r_squared == pytest.approx(1.0, abs=1e-10)

    def test_the_dimension_grows_by_the_same_law(self):
        lengths = np.array([16.0, 64, 256, 1024])
        assert scaling_law.fit(lengths, 40.0 - 80.0 / lengths**0.5).scale == pytest.approx(-80.0, rel=1e-5)

    @pytest.mark.parametrize(("data", "expected"), [(1e6, 9126), (1e8, 32043)])
    def test_best_context(self, data, expected):
        best = scaling_law.best_context(scale=6, gamma=0.6, growth=0.02, growth_power=0.5, data=data, data_power=0.3)
        assert best == pytest.approx(expected, abs=1)
        near = [6 * c**-0.6 + 0.02 * c**0.5 * data**-0.3 for c in (0.99 * best, best, 1.01 * best)]
        assert near[1] == min(near)

    def test_refusals(self):
        for tokens, losses in (([1, 2], [1, 2]), ([1, 1, 2], [1, 2, 3]), ([1, 2, 3], [1, 2])):
            with pytest.raises(ValueError, match="at least three distinct"):
                scaling_law.fit(tokens, losses)
        with pytest.raises(ValueError, match="above 0"):
            scaling_law.fit([0, 1, 2], [3, 2, 1])


class TestLongPpl:
    LONG, SHORT = (-0.5, -2.5, -0.1, -1.0), (-3.0, -6.0, -0.2, -3.5)

    def test_worked_numbers(self):
        keys = longppl.key_tokens(self.LONG, self.SHORT)
        assert keys.tolist() == [True, False, False, True]
        assert longppl.long_perplexity(self.LONG, keys) == pytest.approx(2.117000, abs=1e-6)
        assert longppl.perplexity(self.LONG) == pytest.approx(2.787095, abs=1e-6)
        assert longppl.long_ce_weights(self.LONG, self.SHORT) == pytest.approx([5, 5, 1.105171, 5], abs=1e-6)
        assert longppl.long_ce(self.LONG, self.SHORT) == pytest.approx(5.027629, abs=1e-6)

    def test_a_long_context_that_changes_nothing(self):
        keys = longppl.key_tokens(self.LONG, self.LONG)
        assert not keys.any()
        assert math.isnan(longppl.long_perplexity(self.LONG, keys))
        assert longppl.long_ce_weights(self.LONG, self.LONG).tolist() == [1.0] * 4
        assert longppl.long_ce(self.LONG, self.LONG) == pytest.approx(1.025)

    def test_the_bounds_are_not_met_by_equality(self):
        assert longppl.key_tokens([-1.0, -2.0], [-3.0, -9.0]).tolist() == [False, False]

    def test_refusals(self):
        with pytest.raises(ValueError, match="short: expected the shape"):
            longppl.key_tokens([1.0], [1.0, 2.0])
        with pytest.raises(ValueError, match="keys: expected the shape"):
            longppl.long_perplexity([1.0], [True, False])


class TestRetrievalHeads:
    PROMPT, NEEDLE = list(range(100, 120)), range(5, 15)

    def test_four_of_ten_positions(self):
        """Head 0 copies positions 5, 6, 7, 8, and 8 a second time; head 1 looks at a sink; head 2 one token too far."""
        attended = [[5, 0, 6], [6, 0, 7], [7, 0, 8], [8, 0, 9], [8, 0, 9]]
        scores = retrieval_heads.head_scores(attended, [105, 106, 107, 108, 108], self.PROMPT, self.NEEDLE)
        assert scores.tolist() == [0.4, 0.0, 0.0]

    def test_a_perfect_head_and_one_beside_the_needle(self):
        attended = [[position, position - 5] for position in self.NEEDLE]
        predicted = [self.PROMPT[position] for position in self.NEEDLE]
        assert retrieval_heads.head_scores(attended, predicted, self.PROMPT, self.NEEDLE).tolist() == [1.0, 0.0]

    def test_a_right_token_outside_of_the_needle(self):
        for position in (0, 4, 15):
            scores = retrieval_heads.head_scores([[position]], [100 + position], self.PROMPT, self.NEEDLE)
            assert scores.tolist() == [0.0]

    def test_only_runs_that_found_the_needle_count(self):
        runs = [[[0.4, 0.0]], [[0.2, 0.2]], [[1.0, 1.0]]]
        means = retrieval_heads.mean_scores(runs, [0.9, 0.6, 0.5])
        assert means.tolist() == [pytest.approx([0.3, 0.1])]
        assert retrieval_heads.retrieval_heads(means) == {(0, 0), (0, 1)}
        assert np.isnan(retrieval_heads.mean_scores(runs, [0.1, 0.2, 0.3])).all()

    def test_two_models(self):
        assert retrieval_heads.cosine([0.9, 0.1, 0.0, 0.4], [0.6, 0.0, 0.0, 0.2]) == pytest.approx(0.990259, abs=1e-6)
        assert math.isnan(retrieval_heads.cosine([0.0], [1.0]))
        assert retrieval_heads.recall({(0, 1), (2, 3)}, {(0, 1), (1, 1), (2, 3), (4, 4)}) == 0.5
        assert math.isnan(retrieval_heads.recall(set(), set()))

    def test_refusals(self):
        with pytest.raises(ValueError, match="attended: expected"):
            retrieval_heads.head_scores([[1]], [1, 2], self.PROMPT, self.NEEDLE)
        for needle in (range(5, 5), range(15, 25), range(5, 15, 2)):
            with pytest.raises(ValueError, match="needle: expected consecutive"):
                retrieval_heads.head_scores([[1]], [1], self.PROMPT, needle)
        with pytest.raises(ValueError, match="recalls: expected one a run"):
            retrieval_heads.mean_scores([[0.1]], [0.9, 0.9])


class TestIntrinsicDimension:
    def test_of_a_spectrum(self):
        assert intrinsic_dimension.dimension_of_spectrum([1.0, 0.5, 0.0036, 0.0035, 0.001]) == 3
        assert intrinsic_dimension.dimension_of_spectrum([2.0, 0.0]) == 1
        assert intrinsic_dimension.dimension_of_spectrum([0.0, 0.0]) == 0

    def test_the_spectrum_of_four_points(self):
        """(±2, 0) and (0, ±1): variances 8/3 and 2/3."""
        points = [[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
        assert intrinsic_dimension.covariance_spectrum(points) == pytest.approx([8 / 3, 2 / 3])

    @pytest.mark.parametrize("rank", [1, 3, 7])
    def test_points_of_a_plane(self, rank):
        """In a turned and moved plane of 16 dimensions."""
        random = np.random.default_rng(rank)
        turn = np.linalg.qr(random.normal(size=(16, 16)))[0]
        points = random.normal(size=(400, rank)) @ turn[:rank] + 100.0
        assert intrinsic_dimension.intrinsic_dimension(points) == rank

    def test_refusals(self):
        with pytest.raises(ValueError, match="greatest first"):
            intrinsic_dimension.dimension_of_spectrum([1.0, 2.0])
        with pytest.raises(ValueError, match=r"vectors: expected \[n, dim\]"):
            intrinsic_dimension.covariance_spectrum([[1.0]])
