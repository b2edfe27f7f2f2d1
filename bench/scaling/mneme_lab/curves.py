# SPDX-License-Identifier: Apache-2.0
"""Curves of loss by size of the memory, made of the results of a run."""
from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mneme_lab import bootstrap, longppl, scaling_law
from mneme_lab.grid import OPTIONS, digest
from mneme_lab.results import Result, read_losses


@dataclasses.dataclass(frozen=True)
class Point:
    """A size, its loss in nats a token, and how much less that is than without a memory (`gain`, None there)."""

    size: int
    held: int  # tokens that could be retrieved; no memory still has the pinned ones
    loss: bootstrap.Interval
    gain: bootstrap.Interval | None
    key_tokens: int  # of LongPPL, against no memory
    long_perplexity: float
    seconds: float
    interrupted: bool
    commands: list[list[str]]

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss.mean)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The points of one model, text and group of settings, by size, with native contexts beside them."""

    label: str
    model: str
    text: str
    scored: int
    options: dict[str, Any]
    points: list[Point]
    native: list[Point]
    law: scaling_law.ScalingLaw | None
    steps: list[bootstrap.Interval]  # how much the loss falls from each point to the next
    below_native: list[bootstrap.Interval]  # how much the best point's loss is below that of each native context


Losses = tuple[NDArray[np.int64], NDArray[np.float64]]


def settings_text(result: Result) -> str:
    """The settings that differ from the defaults, in words."""
    words = [f"{name} {value}" for name, value in result["options"].items() if value != OPTIONS[name]]
    words += [f"{name} {value} while taken in" for name, value in result["ingest"].items()]
    return ", ".join(words)


def _check_same_tokens(results: list[Result], losses: dict[str, Losses]) -> None:
    first = losses[results[0]["cell"]][0]
    for result in results[1:]:
        if not np.array_equal(losses[result["cell"]][0], first):
            raise ValueError(f"cells {results[0]['cell']} and {result['cell']} scored other tokens; their losses "
                             f"cannot be compared")


def _point(result: Result, losses: dict[str, Losses], base: NDArray[np.float64] | None) -> Point:
    own = losses[result["cell"]][1]
    keys = longppl.key_tokens(-own, -base) if base is not None else np.zeros(len(own), dtype=bool)
    return Point(
        size=result["size"], held=result["held"], loss=bootstrap.mean_interval(own),
        gain=bootstrap.paired_interval(base, own) if base is not None else None,
        key_tokens=int(keys.sum()), long_perplexity=longppl.long_perplexity(-own, keys),
        seconds=result["score_seconds"] + result["ingest_seconds"], interrupted=result["interrupted"],
        commands=result["commands"],
    )


def _without_memory(result: Result) -> str:
    """Names the settings that matter where only the pinned tokens are retrieved: these have no bias and no decay."""
    options = [{name: value for name, value in settings.items() if name not in ("bias", "decay", "decay_beyond")}
               for settings in (result["options"], {**result["options"], **result["ingest"]})]
    return digest([options, *(result[name] for name in ("model", "text", "scored", "warm_up"))])


def _curve(results: list[Result], every: list[Result], losses: dict[str, Losses]) -> Curve:
    """every: all results, among them native contexts and a memory of 0 tokens that the curve may lack."""
    results = sorted(results, key=lambda result: int(result["size"]))
    first = results[0]
    natives = [result for result in every if result["kind"] == "native" and all(
        result[name] == first[name] for name in ("model", "text", "scored"))]
    zeros = [result for result in [*results, *every] if result["kind"] == "memory" and result["size"] == 0
             and _without_memory(result) == _without_memory(first)]
    _check_same_tokens([*results, *natives, *zeros], losses)
    base = losses[zeros[0]["cell"]][1] if zeros else None
    points = [_point(result, losses, base if result["size"] > 0 else None) for result in results]
    steps = [bootstrap.paired_interval(losses[a["cell"]][1], losses[b["cell"]][1])
             for a, b in itertools.pairwise(results)]
    best = min(results, key=lambda result: float(losses[result["cell"]][1].mean()))
    below_native = [bootstrap.paired_interval(losses[native["cell"]][1], losses[best["cell"]][1]) for native in natives]
    window = 1.5 * first["options"]["window"]  # in the mean: one to two blocks
    law = None
    if len(points) >= 4:
        law = scaling_law.fit([point.held for point in points], [point.loss.mean for point in points], offset=window)
    label = f"{first['model']} on {first['text']}"
    if settings_text(first):
        label += f" ({settings_text(first)})"
    return Curve(label, first["model"], first["text"], first["measured"], first["options"], points,
                 [_point(result, losses, base) for result in natives], law, steps, below_native)


def curves(results: list[Result], folder: pathlib.Path) -> list[Curve]:
    """One curve for each model, text, number of scored tokens and group of settings, with the native contexts."""
    losses = {result["cell"]: read_losses(folder / result["losses"]) for result in results}
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result["kind"] == "memory":
            key = [result[name] for name in ("model", "text", "scored", "warm_up", "options", "ingest")]
            groups.setdefault(digest(key), []).append(result)
    return [_curve(group, results, losses) for group in groups.values()]
