# SPDX-License-Identifier: Apache-2.0
"""A grid file: which models read which texts with which memories. docs/lab.md describes its keys."""
from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
import tomllib
from collections.abc import Iterator
from typing import Any

# Options of mneme-llama that a grid may vary, with the values that a grid without them has.
OPTIONS: dict[str, Any] = {
    "layers": [], "policy": "fixed", "distance": 2048.0, "top_k": 32, "fusion": "joint", "bias": 0.0, "decay": 0.0,
    "decay_beyond": 4096.0, "pinned": 16, "window": 512, "stored_type": "f16",
}
AXES = ("model", "text", "memory", "native", "baseline", "ingest", *OPTIONS)
NUMBERS = {"scored": 8192, "warm_up": 2048}  # tokens


class GridError(ValueError):
    """A grid file that cannot be run."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A file below the folder of texts, and how many of its first bytes are read; 0: all."""

    file: str
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Cell:
    """One measurement: the loss of the text's last `scored` tokens."""

    kind: str  # "memory", "native": llama.cpp alone, "baseline": llama.cpp alone with the pinned tokens and the window
    model: str
    text: str
    size: int  # tokens of memory, or of the native context
    scored: int
    warm_up: int
    options: dict[str, Any]
    ingest: dict[str, Any]  # options that differ while the text is taken in

    @property
    def id(self) -> str:
        """Names the cell in the results; another measurement has another name."""
        return digest(dataclasses.asdict(self))

    @property
    def ingested(self) -> int:
        """How many tokens are read before the scored ones."""
        if self.kind == "native":
            return self.size
        return max(self.size, int(self.options["pinned"])) + int(self.options["window"]) + self.warm_up

    @property
    def decoded(self) -> int:
        """How many tokens the model decodes for it. Each quarter of a native context takes a whole one."""
        if self.kind == "native":
            return -(-self.scored // max(self.size // 4, 1)) * self.size
        return self.ingested + self.scored

    @property
    def state(self) -> str:
        """Names what the text is taken into; cells that differ in scoring alone share it."""
        parts = [self.model, self.text, self.size, self.scored, self.warm_up, {**self.options, **self.ingest}]
        return digest(parts)


@dataclasses.dataclass(frozen=True)
class Grid:
    """What a grid file says."""

    name: str
    models: dict[str, str]
    texts: dict[str, Text]
    cells: list[Cell]


def digest(value: object) -> str:
    """Twelve hexadecimal digits that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _values(block: dict[str, Any], axis: str, default: list[Any]) -> list[Any]:
    """The values of an axis: those of a list, or one. A list of layers is one value; several are a list of lists."""
    value = block.get(axis)
    if value is None:
        return default
    if axis == "layers":
        return value if value and isinstance(value[0], list) else [value]
    return value if isinstance(value, list) else [value]


def _check_options(options: dict[str, Any], where: str) -> None:
    for name, value in options.items():
        if name not in OPTIONS:
            raise GridError(f"{where}: unknown option {name}; expected one of {', '.join(OPTIONS)}")
        expected = type(OPTIONS[name])
        kinds = (int, float) if expected is float else (expected,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise GridError(f"{where}: {name}: expected {expected.__name__}, got {value!r}")


def _kinds(block: dict[str, Any], where: str) -> Iterator[tuple[str, int]]:
    """The kinds and sizes that a block asks for."""
    for kind in ("memory", "native"):
        for size in _values(block, kind, []):
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise GridError(f"{where}: {kind}: expected numbers of tokens, got {size!r}")
            yield kind, size
    if block.get("baseline"):
        yield "baseline", 0


def _cells(block: dict[str, Any], where: str, models: dict[str, str], texts: dict[str, Text]) -> Iterator[Cell]:
    unknown = set(block) - set(AXES) - set(NUMBERS)
    if unknown:
        raise GridError(f"{where}: unknown key {', '.join(sorted(unknown))}")
    numbers = {name: block.get(name, default) for name, default in NUMBERS.items()}
    for name, number in numbers.items():
        if not isinstance(number, int) or number < (1 if name == "scored" else 0):
            raise GridError(f"{where}: {name}: expected a number of tokens, got {number!r}")
    kinds = list(_kinds(block, where))
    if not kinds:
        raise GridError(f"{where}: expected memory, native or baseline")
    axes = [_values(block, name, [default]) for name, default in OPTIONS.items()]
    for model, text in itertools.product(_values(block, "model", list(models)), _values(block, "text", list(texts))):
        if model not in models or text not in texts:
            raise GridError(f"{where}: model {model!r} or text {text!r} is not in [models] and [texts]")
        for values, ingest, (kind, size) in itertools.product(
                itertools.product(*axes), _values(block, "ingest", [{}]), kinds):
            options = dict(zip(OPTIONS, values, strict=True))
            _check_options(options, where)
            _check_options(ingest, f"{where}: ingest")
            if kind == "memory" and size <= options["pinned"] and (size > 0 or options["pinned"] == 0):
                raise GridError(f"{where}: memory: expected 0 with pinned tokens, or more than the {options['pinned']} "
                                f"pinned ones, got {size}")
            yield Cell(kind, model, text, size, numbers["scored"], numbers["warm_up"], options, ingest)


def parse(source: str) -> Grid:
    """The grid of a TOML document. Raises GridError."""
    try:
        document = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise GridError(f"not TOML: {error}") from error
    unknown = set(document) - {"name", "models", "texts", "block"}
    if unknown:
        raise GridError(f"unknown key {', '.join(sorted(unknown))}; expected name, models, texts, block")
    models = document.get("models", {})
    texts = {name: Text(**text) if isinstance(text, dict) else Text(text)
             for name, text in document.get("texts", {}).items()}
    blocks = document.get("block", [])
    if not models or not texts or not blocks:
        raise GridError("expected [models], [texts] and at least one [[block]]")
    cells: dict[str, Cell] = {}
    for number, block in enumerate(blocks, start=1):
        for cell in _cells(block, f"block {number}", models, texts):
            cells.setdefault(cell.id, cell)
    return Grid(document.get("name", "grid"), models, texts, list(cells.values()))


def read(path: pathlib.Path) -> Grid:
    """The grid of a file. Raises GridError and OSError."""
    return parse(path.read_text(encoding="utf-8"))
