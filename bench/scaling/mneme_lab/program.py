# SPDX-License-Identifier: Apache-2.0
"""The command lines of mneme-llama, and running them."""
from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import subprocess
from typing import Any

from mneme_lab.grid import OPTIONS, Cell, Grid

# Otherwise mneme-llama would go on with the store after mneme-lab was killed. util-linux has it.
WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


class ProgramError(RuntimeError):
    """mneme-llama failed; the message is its own."""


@dataclasses.dataclass(frozen=True)
class Program:
    """mneme-llama, and where models and texts lie."""

    path: pathlib.Path
    models: pathlib.Path
    texts: pathlib.Path
    threads: int

    def run(self, arguments: list[str]) -> Any:
        """The JSON that a command prints. It is killed if this thread ends first. Raises ProgramError."""
        command = [str(self.path), *arguments]
        done = subprocess.run([*WITH_PARENT, *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProgramError(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def version(self) -> str:
        done = subprocess.run([str(self.path), "--version"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ProgramError(f"{self.path} --version: {done.stderr.strip()}")
        return done.stdout.strip()

    def source(self, grid: Grid, cell: Cell) -> list[str]:
        """The options for model and text. The text ends with the scored tokens, after one that is not scored."""
        text = grid.texts[cell.text]
        return ["--model", str(self.models / grid.models[cell.model]), "--threads", str(self.threads),
                "--text", str(self.texts / text.file), "--bytes", str(text.bytes),
                "--last", str(cell.ingested + cell.scored + 1)]

    def ingest(self, grid: Grid, cell: Cell, store: pathlib.Path, tokens: int) -> list[str]:
        """Takes the first `tokens` tokens in."""
        options = {**cell.options, **cell.ingest}
        memory = max(cell.size, int(options["pinned"]))
        return ["ingest", *self.source(grid, cell), *option_words(options, new_memory=True), "--store", str(store),
                "--memory", "m", "--memory-tokens", str(memory), "--tokens", str(tokens), "--json"]

    def score(self, grid: Grid, cell: Cell, store: pathlib.Path, losses: pathlib.Path) -> list[str]:
        """Scores the last tokens."""
        words = ["perplexity", *self.source(grid, cell), *option_words(cell.options, new_memory=False),
                 "--score", str(cell.scored + 1), "--losses", str(losses), "--json"]
        if cell.kind == "memory":
            return [*words, "--store", str(store), "--memories", "m"]
        return [*words, "--baseline"] if cell.kind == "baseline" else [*words, "--native", str(cell.size)]


def option_words(options: dict[str, Any], *, new_memory: bool) -> list[str]:
    """The options that differ from mneme-llama's defaults; it refuses some that would have no effect."""
    words = []
    for name, default in OPTIONS.items():
        value = options[name]
        if value == default or (name == "stored_type" and not new_memory):
            continue
        text = ",".join(str(layer) for layer in value) if isinstance(value, list) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return words
