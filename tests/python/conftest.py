# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python package share. PYTHONPATH leads to the package of the build tree."""
from __future__ import annotations

import mneme
import numpy as np
import pytest

LAYER = 8


def make_card(q_heads=4, kv_heads=2, key_dim=64, value_dim=64, name="tiny", **fields):
    return mneme.Card(name, "sha256:1f", [mneme.Layer(LAYER, q_heads, kv_heads, key_dim, value_dim, **fields)])


def random_rows(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def store(folder):
    with mneme.open(folder) as opened:
        yield opened


@pytest.fixture
def card():
    return make_card()


@pytest.fixture
def memory(store, card):
    """A memory of 100 tokens."""
    made = store.create("m", card)
    made.append(layer=LAYER, keys=random_rows(1, 100, 2, 64), values=random_rows(2, 100, 2, 64))
    return made
