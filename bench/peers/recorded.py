# SPDX-License-Identifier: Apache-2.0
"""Reads keys and queries recorded from a model (`mneme-llama record`); the format is in tests/index/recorded_qk.h."""

from typing import NamedTuple

import numpy as np


class Layer(NamedTuple):
    layer: int
    keys: np.ndarray     # f32 [kv_heads, rows, dim]
    queries: np.ndarray  # f32 [q_heads, queries, dim]


def layers_of(path):
    with open(path, "rb") as file:
        if file.read(8) != b"MNEMEQK1":
            raise ValueError(f"{path}: is no recording of queries and keys")
        count = int(np.fromfile(file, "<i4", 1)[0])
        layers = []
        for _ in range(count):
            layer, q_heads, kv_heads, dim, rows, queries = (int(x) for x in np.fromfile(file, "<i4", 6))
            keys = np.fromfile(file, "<f4", kv_heads * rows * dim).reshape(kv_heads, rows, dim)
            query = np.fromfile(file, "<f4", q_heads * queries * dim).reshape(q_heads, queries, dim)
            layers.append(Layer(layer, keys, query))
    return layers
