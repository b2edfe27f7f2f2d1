# SPDX-License-Identifier: Apache-2.0
"""A small grid with the real program, model and text: what must hold whatever the numbers are.

MNEME_LLAMA, MNEME_MODELS and MNEME_TEXTS name the program and the folders.
"""
from __future__ import annotations

import os
import pathlib

import pytest
from mneme_lab import curves, grid, program, report, results, runner

GRID = pathlib.Path(__file__).parents[2] / "bench/scaling/grids/reduced.toml"
SLICE = 256


@pytest.fixture(scope="module")
def llama():
    if not os.environ.get("MNEME_LLAMA"):
        pytest.skip("no mneme-llama: MNEME_LLAMA is not set")
    return program.Program(*(pathlib.Path(os.environ[name]) for name in ("MNEME_LLAMA", "MNEME_MODELS", "MNEME_TEXTS")),
                           threads=2)


def run(llama, folder):
    """Measures the grid; the results by kind, size and policy."""
    store = results.Results(folder)
    assert runner.Run(grid.read(GRID), llama, store, slice_tokens=SLICE).run() == 0
    return {(result["kind"], result["size"], result["options"]["policy"]): result for result in store.load().values()}


@pytest.fixture(scope="module")
def measured(llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return folder, run(llama, folder)


def test_a_memory_lowers_the_loss(measured):
    found = measured[1]
    none, some = found["memory", 0, "fixed"], found["memory", 512, "fixed"]
    assert (none["held"], some["held"]) == (16, 512)
    assert none["measured"] == some["measured"] == 256
    assert some["nll"] < none["nll"] - 0.1


def test_no_memory_is_the_baseline(measured):
    """On quantised weights, where rounding alone makes a difference of about 0.01 nats a token."""
    found = measured[1]
    assert found["memory", 0, "as-stored"]["nll"] == pytest.approx(found["baseline", 0, "as-stored"]["nll"], abs=0.03)


def test_stopped_and_resumed_twice_is_the_same_bit_for_bit(llama, measured, tmp_path, monkeypatch):
    """The same settings give the same losses, in one go or in three: between two slices, and before a score."""
    calls = []
    really = program.Program.run

    def stop_at_some(self, arguments):
        calls.append(arguments[0])
        if len(calls) in (2, 6):
            raise program.ProgramError("stopped")
        return really(self, arguments)

    monkeypatch.setattr(program.Program, "run", stop_at_some)
    for _ in range(2):
        with pytest.raises(program.ProgramError, match="stopped"):
            run(llama, tmp_path)
    resumed = run(llama, tmp_path)
    assert resumed.keys() == measured[1].keys()
    for key, result in measured[1].items():
        assert resumed[key]["losses_sha256"] == result["losses_sha256"], key


def test_the_report(measured):
    folder = measured[0]
    page = report.write(results.Results(folder)).read_text()
    assert "<svg" in page
    assert "SmolLM2-135M" in page
    fixed = next(curve for curve in curves.curves(list(results.Results(folder).load().values()), folder)
                 if curve.options["policy"] == "fixed")
    assert [point.size for point in fixed.points] == [0, 512]
    assert [point.size for point in fixed.native] == [1024]
    assert fixed.points[1].gain.low > 0
