# SPDX-License-Identifier: Apache-2.0
"""Names of the package for the numbers of the ABI, and sizes in bytes with units."""
from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Literal, Union

from mneme._errors import InvalidArgument
from mneme._native import lib

DType = Literal["f32", "f16", "bf16", "i8"]
Mode = Literal["rw", "r", "follow"]
Fusion = Literal["joint", "gated", "memory_only", "local_only"]
PositionPolicy = Literal["as_stored", "fixed_distance", "window_start", "clamped"]
RotaryLayout = Literal["interleaved", "halves"]
#: A number of bytes, or text such as "512 MiB" or "4GB".
Size = Union[int, str]


class Durability(enum.IntEnum):
    """What committed tokens survive."""

    BUFFERED = 0
    """the death of the process"""
    SYNCED = 1
    """a loss of power"""


DTYPES: dict[str, int] = {
    "f32": lib.MNEME_DTYPE_F32,
    "f16": lib.MNEME_DTYPE_F16,
    "bf16": lib.MNEME_DTYPE_BF16,
    "i8": lib.MNEME_DTYPE_I8,
}
DTYPE_NAMES: dict[int, DType] = {1: "f32", 2: "f16", 3: "bf16", 4: "i8"}
MODES: dict[str, int] = {
    "rw": lib.MNEME_MODE_READ_WRITE,
    "r": lib.MNEME_MODE_READ_ONLY,
    "follow": lib.MNEME_MODE_FOLLOW,
}
FUSIONS: dict[str, int] = {
    "joint": lib.MNEME_FUSION_JOINT,
    "gated": lib.MNEME_FUSION_GATED,
    "memory_only": lib.MNEME_FUSION_MEMORY_ONLY,
    "local_only": lib.MNEME_FUSION_LOCAL_ONLY,
}
POSITION_POLICIES: dict[str, int] = {
    "as_stored": lib.MNEME_POSITION_AS_STORED,
    "fixed_distance": lib.MNEME_POSITION_FIXED_DISTANCE,
    "window_start": lib.MNEME_POSITION_WINDOW_START,
    "clamped": lib.MNEME_POSITION_CLAMPED,
}
MASKS: dict[str, int] = {
    "causal": lib.MNEME_MASK_CAUSAL,
    "sliding_window": lib.MNEME_MASK_SLIDING_WINDOW,
    "none": lib.MNEME_MASK_NONE,
}
ROTARY_LAYOUTS: dict[str, int] = {"interleaved": lib.MNEME_ROTARY_INTERLEAVED, "halves": lib.MNEME_ROTARY_HALVES}

_UNITS = {"": 1, "b": 1}
for _i, _letter in enumerate("kmgt", 1):
    _UNITS[_letter] = _UNITS[f"{_letter}b"] = 1000**_i
    _UNITS[f"{_letter}ib"] = 1024**_i
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def number_of(name: str, value: str, numbers: Mapping[str, int]) -> int:
    """The ABI's number for `value`, which the caller gave as the argument `name`."""
    try:
        return numbers[value]
    except (KeyError, TypeError):
        expected = ", ".join(repr(known) for known in numbers)
        raise InvalidArgument(f"{name}: expected one of {expected}, got {value!r}") from None


def bytes_of(name: str, value: Size) -> int:
    """A number of bytes.

    >>> bytes_of("ram_budget", "4GB"), bytes_of("ram_budget", "1.5 KiB"), bytes_of("ram_budget", 10)
    (4000000000, 1536, 10)
    """
    if not isinstance(value, str):
        return int(value)
    match = _SIZE.fullmatch(value)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    if match is None or unit is None:
        raise InvalidArgument(f'{name}: expected bytes, as 1000000, "512 MiB" or "4GB", got {value!r}')
    return int(float(match.group(1)) * unit)
