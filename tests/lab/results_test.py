# SPDX-License-Identifier: Apache-2.0
"""The file of results survives a run that was killed while it wrote."""
from __future__ import annotations

import pytest
from mneme_lab import results


def test_what_was_appended_is_there(tmp_path):
    store = results.Results(tmp_path)
    assert store.load() == {}
    store.append({"cell": "a", "nll": 1.5})
    store.append({"cell": "b", "nll": 2.5})
    assert [result["nll"] for result in results.Results(tmp_path).load().values()] == [1.5, 2.5]


def test_half_a_last_line(tmp_path):
    store = results.Results(tmp_path)
    store.append({"cell": "a", "nll": 1.5})
    for half in (b'{"cell": "b", "nl', b'{"cell": "b", "nll": 2}'):
        with store.path.open("ab") as file:
            file.write(half)
        assert list(store.load()) == ["a"]
    store.append({"cell": "c", "nll": 3.5})
    assert list(store.load()) == ["a", "c"]
    assert len(store.path.read_text().splitlines()) == 2


def test_half_of_the_only_line(tmp_path):
    store = results.Results(tmp_path)
    store.path.write_bytes(b'{"ce')
    assert store.load() == {}
    store.append({"cell": "a"})
    assert list(store.load()) == ["a"]


def test_a_damaged_line_is_named(tmp_path):
    store = results.Results(tmp_path)
    for damaged in (b"nonsense\n", b"[1]\n", b"{}\n"):
        store.path.write_bytes(b'{"cell": "a"}\n' + damaged)
        with pytest.raises(ValueError, match="line 2: not a result"):
            store.load()


def test_losses(tmp_path):
    path = tmp_path / "losses.tsv"
    path.write_text("row\tposition\ttoken\tnll\n0\t7\t11\t0.25\n0\t8\t12\t1.5\n")
    tokens, losses = results.read_losses(path)
    assert tokens.tolist() == [11, 12]
    assert losses.tolist() == [0.25, 1.5]
    path.write_text("row\tposition\ttoken\tnll\n1\t7\t11\t0.25\n")
    with pytest.raises(ValueError, match="losses of one score"):
        results.read_losses(path)
