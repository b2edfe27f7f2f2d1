# SPDX-License-Identifier: Apache-2.0
"""Retrieval heads (arXiv 2404.15574): heads that copy tokens of a needle from the prompt into the answer.

A head copies a token if, at a step of greedy decoding, the prompt position that it attends to most lies in the needle
and holds the token that is predicted at that step.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_SCORE = 0.1
LEAST_RECALL = 0.5


def head_scores(attended: ArrayLike, predicted: ArrayLike, prompt: ArrayLike, needle: range) -> NDArray[np.float64]:
    """The share of the needle's positions that each head copies. [heads]

    attended [steps, heads]: the prompt position of the greatest attention weight. predicted [steps] and prompt
    [positions]: token ids. A position that is copied twice counts once.
    """
    sources = np.asarray(attended, dtype=np.int64)
    tokens, context = np.asarray(predicted, dtype=np.int64), np.asarray(prompt, dtype=np.int64)
    if sources.ndim != 2 or len(sources) != len(tokens):
        raise ValueError(f"attended: expected [{len(tokens)} steps, heads], got shape {sources.shape}")
    if len(needle) == 0 or needle.start < 0 or needle.stop > len(context) or needle.step != 1:
        raise ValueError(f"needle: expected consecutive positions of a prompt of {len(context)} tokens, got {needle}")
    inside = (sources >= needle.start) & (sources < needle.stop)
    copies = inside & (context[np.where(inside, sources, needle.start)] == tokens[:, None])
    scores = [len(np.unique(sources[copies[:, head], head])) for head in range(sources.shape[1])]
    return np.asarray(scores, dtype=np.float64) / len(needle)


def mean_scores(runs: Sequence[ArrayLike], recalls: ArrayLike, *, least_recall: float = LEAST_RECALL
                ) -> NDArray[np.float64]:
    """The mean over the runs whose answer has more than `least_recall` of the needle's words; NaN if there is none."""
    scores, kept = np.asarray(runs, dtype=np.float64), np.asarray(recalls, dtype=np.float64) > least_recall
    if len(scores) != len(kept):
        raise ValueError(f"recalls: expected one a run, {len(scores)}, got {len(kept)}")
    if not kept.any():
        return np.full(scores.shape[1:], np.nan)
    return np.asarray(scores[kept].mean(axis=0), dtype=np.float64)


def retrieval_heads(scores: ArrayLike, *, least: float = LEAST_SCORE) -> set[tuple[int, ...]]:
    """The indices, for instance (layer, head), whose score is at least `least`."""
    return {tuple(int(i) for i in index) for index in np.argwhere(np.asarray(scores, dtype=np.float64) >= least)}


def cosine(first: ArrayLike, second: ArrayLike) -> float:
    """How alike the scores of two models or texts are; NaN where one of them is all zero."""
    a, b = np.ravel(np.asarray(first, dtype=np.float64)), np.ravel(np.asarray(second, dtype=np.float64))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else float("nan")


def recall(found: set[tuple[int, ...]], wanted: set[tuple[int, ...]]) -> float:
    """The share of the wanted heads that were found; NaN where none is wanted."""
    return len(found & wanted) / len(wanted) if wanted else float("nan")
