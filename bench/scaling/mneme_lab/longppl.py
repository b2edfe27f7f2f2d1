# SPDX-License-Identifier: Apache-2.0
"""LongPPL and LongCE (arXiv 2410.23771): perplexity on the tokens that need a long context.

`long` and `short` are log probabilities [tokens] of the same tokens with a long and with a short context; here, with a
memory and with the window alone. Their difference is what the long context gains for a token.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_GAIN = 2.0  # nats; alpha of the paper
LEAST_LOG_PROBABILITY = -2.0  # beta of the paper
GREATEST_WEIGHT = 5.0


def _same_tokens(long: ArrayLike, short: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(long, dtype=np.float64), np.asarray(short, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"short: expected the shape {a.shape} of long, got {b.shape}")
    return a, b


def key_tokens(long: ArrayLike, short: ArrayLike, *, least_gain: float = LEAST_GAIN,
               least_log_probability: float = LEAST_LOG_PROBABILITY) -> NDArray[np.bool_]:
    """Which tokens are predicted well with the long context and much worse with the short one. [tokens]"""
    a, b = _same_tokens(long, short)
    keys: NDArray[np.bool_] = (a - b > least_gain) & (a > least_log_probability)
    return keys


def perplexity(log_probabilities: ArrayLike) -> float:
    """exp of the mean negative log probability; NaN for no tokens."""
    values = np.asarray(log_probabilities, dtype=np.float64)
    return float(np.exp(-values.mean())) if len(values) else float("nan")


def long_perplexity(log_probabilities: ArrayLike, keys: ArrayLike) -> float:
    """The perplexity of the key tokens alone; NaN where there is none."""
    values, chosen = np.asarray(log_probabilities, dtype=np.float64), np.asarray(keys, dtype=np.bool_)
    if values.shape != chosen.shape:
        raise ValueError(f"keys: expected the shape {values.shape} of log_probabilities, got {chosen.shape}")
    return perplexity(values[chosen])


def long_ce_weights(long: ArrayLike, short: ArrayLike, *, greatest: float = GREATEST_WEIGHT) -> NDArray[np.float64]:
    """The weight of each token in LongCE: min(exp(gain), greatest). [tokens]"""
    a, b = _same_tokens(long, short)
    return np.exp(np.minimum(a - b, np.log(greatest)))


def long_ce(long: ArrayLike, short: ArrayLike) -> float:
    """The mean of weight * loss, in nats."""
    return float(-(long_ce_weights(long, short) * np.asarray(long, dtype=np.float64)).mean())
