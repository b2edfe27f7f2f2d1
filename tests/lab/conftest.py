# SPDX-License-Identifier: Apache-2.0
"""A grid with models and texts of a few bytes, and a program that stands in for mneme-llama."""
from __future__ import annotations

import pathlib
import sys

import pytest
from mneme_lab import grid, program, results, runner

GRID = """
name = "small"
models = { tiny = "tiny.gguf" }
texts = { words = "words.txt" }
[[block]]
memory = [0, 512, 2048, 8192]
scored = 2048
warm_up = 1000
[[block]]
memory = 2048
ingest = { decay = 0.0 }
decay = 1.0
scored = 2048
warm_up = 1000
[[block]]
native = 1024
scored = 2048
"""


class Laboratory:
    """Runs a grid with the stand-in."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        (folder / "tiny.gguf").write_text("model")
        (folder / "words.txt").write_text("text")
        fake = folder / "mneme-llama"
        script = pathlib.Path(__file__).parent / "fake_mneme_llama.py"
        fake.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{script}' \"$@\"\n")
        fake.chmod(0o755)
        self.program = program.Program(fake, folder, folder, threads=1)
        self.grid = grid.parse(GRID)
        (folder / "grid.toml").write_text(GRID)
        self.calls_path = folder / "calls"
        monkeypatch.setenv("FAKE_CALLS", str(self.calls_path))

    def results(self, name: str = "out") -> results.Results:
        return results.Results(self.folder / name)

    def run(self, name: str = "out", die: int = -1, **options) -> int:
        self.monkeypatch.setenv("FAKE_DIE", str(die))
        return runner.Run(self.grid, self.program, self.results(name), **options).run()

    def calls(self) -> list[str]:
        """The commands since the last question."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        self.calls_path.unlink(missing_ok=True)
        return lines

    def numbers(self, name: str = "out") -> dict[str, float]:
        return {cell: result["nll"] for cell, result in self.results(name).load().items()}


@pytest.fixture
def laboratory(tmp_path, monkeypatch):
    return Laboratory(tmp_path, monkeypatch)
