# SPDX-License-Identifier: Apache-2.0
"""The results of a run: one JSON document a line, which are only ever appended, and the losses of each cell."""
from __future__ import annotations

import json
import os
import pathlib
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

Result = dict[str, Any]


class Results:
    """The results in a folder. Threads may append at the same time; only one process may."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.path = folder / "results.jsonl"
        self._lock = threading.Lock()

    def losses_path(self, cell: str) -> pathlib.Path:
        return self.folder / "losses" / f"{cell}.tsv"

    def load(self) -> dict[str, Result]:
        """Results by the id of their cell, in the order in which they were measured.

        A last line that a killed run did not finish is left out; any other damaged line raises ValueError.
        """
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")
        found: dict[str, Result] = {}
        for number, line in enumerate(lines[:-1], start=1):
            try:
                result = json.loads(line)
                found[result["cell"]] = result
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path}, line {number}: not a result: {error}") from error
        return found

    def append(self, result: Result) -> None:
        """Adds a line, which survives a loss of power when this returns."""
        with self._lock, self.path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            if size > 0:
                content = self.path.read_bytes()
                if not content.endswith(b"\n"):  # what a killed run left
                    file.truncate(content.rfind(b"\n") + 1)
            file.write(json.dumps(result, sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read_losses(path: pathlib.Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The token ids and losses, in nats, that mneme-llama wrote for one score. [tokens] each"""
    table = np.loadtxt(path, delimiter="\t", skiprows=1, ndmin=2)
    if len(table) == 0 or table.shape[1] != 4 or (table[:, 0] != 0).any():
        raise ValueError(f"{path}: expected the losses of one score in four columns")
    return table[:, 2].astype(np.int64), table[:, 3]
