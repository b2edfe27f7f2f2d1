# SPDX-License-Identifier: Apache-2.0
"""Memories as safetensors: what Python writes and reads, and what the package `safetensors` finds in it."""
from __future__ import annotations

import mneme
import numpy as np
import pytest
from conftest import LAYER


def test_an_export_is_imported(store, memory, card, tmp_path):
    path = tmp_path / "m.safetensors"
    memory.attachments["settings"] = b"{}"
    seen = []
    memory.export(path, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    with pytest.raises(mneme.AlreadyExists):
        memory.export(path)
    memory.export(path, overwrite=True, max_file_bytes="5GB")
    copy = store.import_memory(path, name="copy", card=card, progress=lambda *_: True)
    assert copy.name == copy.info().name == "copy"
    before, after = memory.read(layer=LAYER), copy.read(layer=LAYER)
    np.testing.assert_array_equal(after.keys, before.keys)
    np.testing.assert_array_equal(after.values, before.values)
    assert copy.attachments["settings"] == b"{}"
    with pytest.raises(mneme.AlreadyExists):
        store.import_memory(path)
    with pytest.raises(mneme.NotFound):
        store.import_memory(tmp_path / "none.safetensors")
    with pytest.raises(mneme.Cancelled):
        store.import_memory(path, name="third", progress=lambda *_: False)


def test_the_name_comes_from_the_file(memory, tmp_path):
    memory.export(tmp_path / "m.safetensors")
    with mneme.open(tmp_path / "other") as other:
        assert other.import_memory(tmp_path / "m.safetensors").name == "m"
        assert list(other) == ["m"]


@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_safetensors_reads_the_file(store, card, tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors")
    memory = store.create("one", card, dtype=dtype)
    rows = np.random.default_rng(3).standard_normal((300, 2, 64)).astype(np.float32)
    memory.append(layer=LAYER, keys=rows, values=-rows, token_ids=range(300))
    memory.export(tmp_path / "one.safetensors")
    with safetensors.safe_open(tmp_path / "one.safetensors", framework="np") as file:
        assert file.metadata()["model_name"] == "tiny"
        assert file.get_slice("token_ids")[10:12].tolist() == [10, 11]
        read = memory.read(layer=LAYER)
        for name, expected in (("keys", read.keys), ("values", read.values)):
            stored = file.get_tensor(f"layers.{LAYER}.{name}").astype(np.float32)
            if dtype == "i8":
                stored *= file.get_tensor(f"layers.{LAYER}.{name[:-1]}_scales")[:, :, None]
            np.testing.assert_array_equal(stored, expected)
    memory.close()
