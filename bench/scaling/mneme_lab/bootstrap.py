# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of mean losses, by a bootstrap over blocks of the document.

Neighbouring tokens are not independent: a lemma that is hard is hard for all of its tokens. What is drawn with
replacement is therefore a block of consecutive tokens and not a token.
"""
from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

BLOCK_TOKENS = 256
LEAST_BLOCKS = 16
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its confidence interval."""

    mean: float
    low: float
    high: float


def block_of(tokens: int) -> int:
    """The default size of a block: 256 tokens, less where these would be fewer than 16 blocks."""
    return max(1, min(BLOCK_TOKENS, tokens // LEAST_BLOCKS))


def block_sums(values: NDArray[np.float64], block: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum and the number of values of each block of `block` consecutive ones; the last block may be shorter."""
    starts = np.arange(0, len(values), block)
    sums = np.add.reduceat(values, starts)
    counts = np.diff(np.append(starts, len(values))).astype(np.float64)
    return sums, counts


def mean_interval(
    losses: ArrayLike, *, block: int | None = None, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of losses [tokens] with a percentile interval of confidence `level`. block: as block_of says."""
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"losses: expected one dimension and at least one token, got shape {values.shape}")
    block = block_of(len(values)) if block is None else block
    if block < 1:
        raise ValueError(f"block: expected at least 1 token, got {block}")
    sums, counts = block_sums(values, block)
    mean = float(values.mean())
    if len(sums) < 2:
        raise ValueError(f"block: {len(values)} tokens are one block of {block}; an interval takes at least two blocks")
    result = stats.bootstrap(
        (sums, counts), lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis), paired=True,
        vectorized=True, n_resamples=resamples, batch=256, confidence_level=level, method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))


def paired_interval(
    first: ArrayLike, second: ArrayLike, *, block: int | None = None, level: float = 0.95,
    resamples: int = RESAMPLES, seed: int = 0,
) -> Interval:
    """The mean of first - second, losses of the same tokens [tokens], with its interval.

    The same blocks are drawn of both, so what makes a block hard for both cancels out.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"second: expected the shape {a.shape} of first, got {b.shape}")
    return mean_interval(a - b, block=block, level=level, resamples=resamples, seed=seed)
