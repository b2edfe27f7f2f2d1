# SPDX-License-Identifier: Apache-2.0
"""Attention over a memory and a local window in double precision, as mneme.h defines it."""
from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Head:
    """Rules of one query head."""

    top_k: int = 32
    bias: float = 0.0
    decay: float = 0.0
    scale: float = 0.125
    gate: float = 0.0


def _softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def attend_head(query, keys, values, positions_age, pinned, local_keys, local_values, seen, head, fusion, soft_cap=0.0,
                decay_beyond=1.0):
    """One query and one head. Returns: output, log-sum-exp, retrieved token indices, memory mass."""

    def cap(score):
        return soft_cap * np.tanh(score / soft_cap) if soft_cap else score

    logits = cap(head.scale * (keys @ query))
    age = np.maximum(0.0, np.log2(np.maximum(positions_age, 1e-9) / decay_beyond))
    bias = head.bias if fusion == "joint" else 0.0
    logits = logits + np.where(pinned, 0.0, bias - head.decay * age)
    chosen = np.lexsort((np.arange(len(logits)), -logits))[: head.top_k]
    memory_logits, memory_values = logits[chosen], values[chosen]
    local_logits = cap(head.scale * (local_keys[seen] @ query))
    local_values = local_values[seen]
    if fusion == "memory_only":
        local_logits, local_values = local_logits[:0], local_values[:0]
    if fusion == "local_only":
        memory_logits, memory_values, chosen = memory_logits[:0], memory_values[:0], chosen[:0]
    both = np.concatenate([memory_logits, local_logits])
    if len(both) == 0:
        return np.zeros(values.shape[1]), -np.inf, chosen, 0.0
    log_sum_exp = np.log(np.exp(both - both.max()).sum()) + both.max()
    if fusion == "gated":
        share = 1 / (1 + np.exp(-head.gate))
        output = np.zeros(values.shape[1])
        if len(memory_logits):
            output += share * (_softmax(memory_logits) @ memory_values)
        if len(local_logits):
            output += (1 - share) * (_softmax(local_logits) @ local_values)
        return output, log_sum_exp, chosen, share
    weights = _softmax(both)
    output = weights @ np.concatenate([memory_values, local_values])
    return output, log_sum_exp, chosen, weights[: len(memory_logits)].sum()
