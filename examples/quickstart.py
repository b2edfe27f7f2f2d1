# SPDX-License-Identifier: Apache-2.0
"""A memory of one layer that survives the process. The first run appends 1,000 tokens; later runs find one of them.

quickstart.py STORE
"""
import sys

# README: begin
import mneme
import numpy as np

card = mneme.Card("my-model", "sha256:...", [mneme.Layer(8, q_heads=4, kv_heads=2, key_dim=64)])


def remember(memory, keys, values):
    """Makes new tokens of a layer part of the memory. They are durable when this returns."""
    memory.append(layer=8, keys=keys, values=values)  # [tokens, kv_heads, dim]
    memory.commit(mneme.SYNCED)


def recall(memory, query, local_keys, local_values):
    """Attends to the best 32 rows of the memory together with the local window."""
    result = memory.attend(layer=8, query=query, local_keys=local_keys, local_values=local_values, top_k=32)
    return result.output, result.tokens  # [tokens, q_heads, dim], [tokens, q_heads, 32]


with mneme.open(sys.argv[1]) as store:
    memory = store.get("user-42", card) or store.create("user-42", card, pinned=16)
    # README: end
    if memory.info().tokens == 0:
        rows = np.random.default_rng(1).standard_normal((1000, 2, 64), np.float32)
        remember(memory, rows, rows)
        print("remembered 1000 tokens; run me again")
    else:
        key = memory.read(layer=8, begin=123, end=124).keys
        output, tokens = recall(memory, key.repeat(2, axis=1), key[:0], key[:0])
        print(f"token {tokens[0, 0, 0]} answers head 0, token {tokens[0, 3, 0]} head 3")
