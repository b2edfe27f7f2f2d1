# SPDX-License-Identifier: Apache-2.0
"""What everyone searches: keys, values and queries, random or recorded from a model."""

import os

import numpy as np

import recorded

STEPS = 32  # different steps of queries, taken in turn


def aligned(shape, dtype, boundary=64):
    """An uninitialised array that starts on a cache line."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(count + boundary, np.uint8)
    start = -raw.ctypes.data % boundary
    return raw[start:start + count].view(dtype).reshape(shape)


def normal(generator, shape):
    values = aligned(shape, np.float16)
    for part in values:  # in parts: f32 of all of it would be twice as much
        part[...] = generator.standard_normal(part.shape, np.float32)
    return values


class Data:
    """keys, values f16 [heads, rows, dim]; queries(group) f32 [steps, heads * group, dim]. Values are random normal."""

    def __init__(self, name, keys, queries, scale):
        self.name, self.keys, self.queries, self.scale = name, keys, queries, scale
        self.heads, self.rows, self.dim = keys.shape
        self.values = normal(np.random.default_rng(3), keys.shape)
        self.flat = {}  # head: an index over its keys in f32, which more than one contestant goes through


def random_data(rows, dim, heads=8):
    keys = normal(np.random.default_rng(1), (heads, rows, dim))

    def queries(group):  # independent of each other: nothing that a step leaves helps the next
        return np.random.default_rng(2).standard_normal((STEPS, heads * group, dim), np.float32)
    return Data("random normal", keys, queries, dim ** -0.5)


def recorded_data(path, layer):
    """The model's scale is in the recorded queries."""
    heads, rows, dim = layer.keys.shape
    keys = aligned((heads, rows // 256 * 256, dim), np.float16)  # blocks that llama.cpp's attention takes
    keys[...] = layer.keys[:, :keys.shape[1]]
    steps = np.ascontiguousarray(layer.queries.transpose(1, 0, 2))  # in the order of the text
    return Data(f"{os.path.basename(path)}, layer {layer.layer}", keys, lambda group: steps, 1.0)
