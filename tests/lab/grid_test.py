# SPDX-License-Identifier: Apache-2.0
"""Grid files: their products, names of cells, and what is refused."""
from __future__ import annotations

import pathlib

import pytest
from mneme_lab import grid

HEAD = 'models = { a = "a.gguf", b = "b.gguf" }\ntexts = { t = { file = "t.txt", bytes = 70 }, u = "u.txt" }\n'


def cells(block: str) -> list[grid.Cell]:
    return grid.parse(HEAD + "[[block]]\n" + block).cells


def test_a_block_is_a_product():
    made = cells("model = 'a'\nmemory = [0, 512]\ntop_k = [8, 32]\ndecay = [0, 0.5]\nlayers = [[1, 2], [3]]")
    assert len(made) == 2 * 2 * 2 * 2 * 2  # two texts
    assert len({cell.id for cell in made}) == len(made)
    assert {(cell.model, cell.text) for cell in made} == {("a", "t"), ("a", "u")}
    assert {tuple(cell.options["layers"]) for cell in made} == {(1, 2), (3,)}
    assert made[0].options == {**grid.OPTIONS, "top_k": 8, "decay": 0, "layers": [1, 2]}


def test_defaults_and_texts():
    parsed = grid.parse(HEAD + "[[block]]\nmemory = 0")
    assert [(cell.model, cell.text) for cell in parsed.cells] == [("a", "t"), ("a", "u"), ("b", "t"), ("b", "u")]
    assert parsed.texts == {"t": grid.Text("t.txt", 70), "u": grid.Text("u.txt")}
    assert parsed.cells[0].scored == 8192


def test_the_same_cell_twice_is_one():
    assert len(grid.parse(HEAD + "[[block]]\nmemory = [0, 0]\n[[block]]\nmemory = 0").cells) == 4


def test_kinds():
    made = cells("model = 'a'\ntext = 't'\nmemory = 512\nnative = [1024, 2048]\nbaseline = true")
    assert [(cell.kind, cell.size) for cell in made] == [("memory", 512), ("native", 1024), ("native", 2048),
                                                         ("baseline", 0)]


def test_tokens_before_the_scored_ones():
    sizes = {cell.size: cell.ingested for cell in cells("model = 'a'\ntext = 't'\nmemory = [0, 512]\nwarm_up = 100")}
    assert sizes == {0: 16 + 512 + 100, 512: 512 + 512 + 100}
    native = cells("model = 'a'\ntext = 't'\nnative = 1024\nscored = 600")[0]
    assert native.ingested == 1024
    assert native.decoded == 3 * 1024  # stretches of 256, 256 and 88
    assert cells("model = 'a'\ntext = 't'\nmemory = 0\nscored = 600\nwarm_up = 0")[0].decoded == 16 + 512 + 600


def test_cells_that_differ_in_scoring_share_a_state():
    one = "model = 'a'\ntext = 't'\nmemory = 512\n"
    scored, other = cells(one + "ingest = { decay = 1.0, top_k = 32 }\ndecay = [0.0, 1.0]")
    alone, = cells(one + "decay = 1.0")
    assert scored.id != other.id
    assert scored.state == other.state == alone.state
    for change in ("memory = 513", "memory = 512\nwarm_up = 1", "memory = 512\nstored_type = 'i8'"):
        assert cells("model = 'a'\ntext = 't'\ndecay = 1.0\n" + change)[0].state != alone.state


@pytest.mark.parametrize(("block", "message"), [
    ("", "expected memory, native or baseline"),
    ("memory = -1", "memory: expected numbers of tokens"),
    ("memory = true", "memory: expected numbers of tokens"),
    ("memory = 16", "more than the 16 pinned ones"),
    ("memory = 0\npinned = 0", "expected 0 with pinned tokens"),
    ("memory = 0\nwings = 2", "unknown key wings"),
    ("memory = 0\nscored = 0", "scored: expected a number"),
    ("memory = 0\nwarm_up = -1", "warm_up: expected a number"),
    ("memory = 0\nmodel = 'c'", "model 'c' or text 't' is not in"),
    ("memory = 0\ndecay = 'slow'", "decay: expected float, got 'slow'"),
    ("memory = 0\ntop_k = 1.5", "top_k: expected int, got 1.5"),
    ("memory = 0\ningest = { wings = 2 }", "ingest: unknown option wings"),
])
def test_refusals(block, message):
    with pytest.raises(grid.GridError, match=message):
        cells(block)


def test_refused_documents():
    for source, message in (("[", "not TOML"), (HEAD, "at least one"), (HEAD + "wings = 2", "unknown key wings")):
        with pytest.raises(grid.GridError, match=message):
            grid.parse(source)


def test_the_committed_grids():
    files = sorted((pathlib.Path(__file__).parents[2] / "bench/scaling/grids").glob("*.toml"))
    assert files
    for file in files:
        assert grid.read(file).cells
        assert grid.read(file).name == file.stem
