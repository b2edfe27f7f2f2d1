# SPDX-License-Identifier: Apache-2.0
"""Runs the cells of a grid that have no result yet.

The text is taken into a memory in slices. Between slices a run can end, and the next one goes on with the same numbers:
mneme-llama keeps the local window with the memory. A run that is killed within a slice goes on after its last committed
block, where the window is decoded again; such a result says so (`interrupted`).
"""
from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import pathlib
import shutil
import threading
import time

from tqdm import tqdm

from mneme_lab import machine
from mneme_lab.grid import Cell, Grid
from mneme_lab.program import Program
from mneme_lab.results import Results

SLICE_TOKENS = 4096


class OutOfTime(Exception):
    """The time that the run may take is over; what is measured stays."""


class State:
    """A memory that the text is taken into, for one or more cells."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.lock = threading.Lock()
        self._done, self._begun, self._broken = (folder / name for name in ("done", "begun", "interrupted"))

    def done(self) -> int:
        """The tokens of whole slices."""
        return int(self._read()["tokens"])

    def seconds(self) -> float:
        """How long these took."""
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, float]:
        if not self._done.exists():
            return {"tokens": 0, "seconds": 0.0}
        return dict(json.loads(self._done.read_text()))

    def interrupted(self) -> bool:
        return self._broken.exists()

    def begin_slice(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._begun.exists():
            self._broken.touch()
        self._begun.touch()

    def end_slice(self, tokens: int, seconds: float) -> None:
        part = self.folder / "done.part"
        part.write_text(json.dumps({"tokens": tokens, "seconds": self.seconds() + seconds}))
        part.replace(self._done)
        self._begun.unlink()


@dataclasses.dataclass
class Run:
    """One run over a grid. After `minutes` no further slice or score begins; None: it takes as long as it takes."""

    grid: Grid
    program: Program
    results: Results
    minutes: float | None = None
    jobs: int = 1
    keep_states: bool = False
    slice_tokens: int = SLICE_TOKENS

    def __post_init__(self) -> None:
        self._end = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        self._states: dict[str, State] = {}
        self._failed = threading.Event()
        self._version, self._machine = self.program.version(), machine.describe()
        self._sums: dict[pathlib.Path, str] = {}
        for cell in self.grid.cells:
            for path in (self._model(cell), self._text(cell)):
                self._sums.setdefault(path, machine.file_sha256(path))

    def run(self) -> int:
        """Measures what has no result yet; returns how many cells are left. Raises ProgramError."""
        (self.results.folder / "losses").mkdir(parents=True, exist_ok=True)
        pending = self._pending()
        self._uses = collections.Counter(cell.state for cell in pending if cell.kind == "memory")
        self._states = {name: State(self.results.folder / "states" / name) for name in self._uses}
        total = sum(self._left(cell) for cell in pending)
        with tqdm(total=total, unit="token", unit_scale=True, desc=self.grid.name, smoothing=0.1) as self._bar:
            with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
                futures = [pool.submit(self._measure, cell) for cell in pending]
                try:
                    for future in concurrent.futures.as_completed(futures):
                        with contextlib.suppress(OutOfTime):
                            future.result()
                except BaseException:  # an interruption, for instance: the pool waits for what is under way
                    self._failed.set()
                    raise
        return len(self._pending())

    def _model(self, cell: Cell) -> pathlib.Path:
        return self.program.models / self.grid.models[cell.model]

    def _text(self, cell: Cell) -> pathlib.Path:
        return self.program.texts / self.grid.texts[cell.text].file

    def _pending(self) -> list[Cell]:
        measured = self.results.load()
        return [cell for cell in self.grid.cells if cell.id not in measured]

    def _left(self, cell: Cell) -> int:
        if cell.kind != "memory":
            return cell.decoded
        return cell.scored + max(cell.ingested - self._states[cell.state].done(), 0) // self._uses[cell.state]

    def _check_time(self) -> None:
        if self._failed.is_set() or (self._end is not None and time.monotonic() >= self._end):
            raise OutOfTime

    def _measure(self, cell: Cell) -> None:
        """One cell. Once one has failed, the others end as if time were over."""
        try:
            self._measure_in_time(cell)
        except OutOfTime:
            raise
        except BaseException:
            self._failed.set()
            raise

    def _measure_in_time(self, cell: Cell) -> None:
        self._check_time()
        started = datetime.datetime.now(datetime.UTC)
        state = self._states.get(cell.state)
        if state is not None:
            with state.lock:
                self._take_in(cell, state)
        self._check_time()
        losses = self.results.losses_path(cell.id)
        store = state.store if state else pathlib.Path()
        commands = [self.program.score(self.grid, cell, store, losses)]
        row = self.program.run(commands[0])[0]
        if state is not None:  # in one go, without the slices
            commands.insert(0, self.program.ingest(self.grid, cell, store, cell.ingested))
        self.results.append({
            "cell": cell.id, **dataclasses.asdict(cell), "grid": self.grid.name, "started": started.isoformat(),
            "nll": row["nll"], "perplexity": row["perplexity"], "measured": row["scored"], "held": row["tokens"],
            "score_seconds": row["seconds"], "ingest_seconds": state.seconds() if state else 0.0,
            "settings": row["settings"],
            "losses": str(losses.relative_to(self.results.folder)), "losses_sha256": machine.file_sha256(losses),
            "commands": commands, "interrupted": state.interrupted() if state else False,
            "program": self._version, "machine": self._machine,
            "model_sha256": self._sums[self._model(cell)], "text_sha256": self._sums[self._text(cell)],
        })
        self._bar.update(cell.scored if cell.kind == "memory" else cell.decoded)
        if state is not None:
            self._drop(state)

    def _take_in(self, cell: Cell, state: State) -> None:
        """Slice by slice up to the scored tokens."""
        done = state.done()
        while done < cell.ingested:
            self._check_time()
            tokens = min(done + self.slice_tokens, cell.ingested)
            begin = time.monotonic()
            state.begin_slice()
            self.program.run(self.program.ingest(self.grid, cell, state.store, tokens))
            state.end_slice(tokens, time.monotonic() - begin)
            self._bar.update((tokens - done) // self._uses[cell.state])
            done = tokens

    def _drop(self, state: State) -> None:
        """Removes the state once no cell of this run needs it."""
        if self.keep_states:
            return
        if all(self._states.get(cell.state) is not state for cell in self._pending() if cell.kind == "memory"):
            shutil.rmtree(state.folder, ignore_errors=True)
