# SPDX-License-Identifier: Apache-2.0
"""Plain numbers of a call: one for each sequence, token or head.

The library reads as many as there have to be, so their count is checked here.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import numpy as np

from mneme._errors import InvalidArgument
from mneme._native import ffi

#: One number for each sequence or token: a list, a NumPy array, or anything that speaks DLPack.
Integers = Union[Sequence[int], Any]
#: One number for all query heads, or one for each.
PerHead = Union[float, Sequence[float], Any]

_INT64_POINTER = ffi.typeof("int64_t[]")
_INT32_POINTER = ffi.typeof("int32_t[]")
_FLOAT_POINTER = ffi.typeof("float[]")


def _as_array(name: str, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value.detach() if getattr(value, "requires_grad", False) else value)
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InvalidArgument(f"{name}: expected numbers, got {type(value).__name__}: {error}") from None


def _check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InvalidArgument(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")


def integers(name: str, value: Integers, count: int, dtype: Any = np.int64) -> Any:
    """A pointer to `count` integers, which keeps them alive."""
    array = _as_array(name, value)
    if array.dtype != dtype or not array.flags.c_contiguous:
        if array.dtype.kind not in "iu" and array.size > 0:
            raise InvalidArgument(f"{name}: expected integers, got {array.dtype}")
        array = _narrow(name, array, dtype)
    _check_shape(name, array, (count,))
    return ffi.from_buffer(_INT64_POINTER if dtype == np.int64 else _INT32_POINTER, array)


def _narrow(name: str, array: Any, dtype: Any) -> Any:
    limits = np.iinfo(dtype)
    for number in (array.min(), array.max()) if array.size > 0 else ():
        if not limits.min <= int(number) <= limits.max:
            raise InvalidArgument(f"{name}: expected numbers of {limits.bits} bits, got {number}")
    return np.ascontiguousarray(array, dtype)


def floats(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    """A pointer to numbers of this shape as f32, which keeps them alive."""
    array = _as_array(name, value)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise InvalidArgument(f"{name}: expected numbers, got {array.dtype}")
    _check_shape(name, array, shape)
    return ffi.from_buffer(_FLOAT_POINTER, np.ascontiguousarray(array, np.float32))


def per_head(name: str, value: PerHead, heads: int) -> Any:
    """A pointer to one f32 for each head; one number stands for all of them."""
    if isinstance(value, (int, float, np.number)):
        return ffi.from_buffer(_FLOAT_POINTER, np.full(heads, value, np.float32))
    return floats(name, value, (heads,))


def new_integers(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """An array of int64 that the library writes, and the pointer to it."""
    array = np.empty(shape, np.int64)
    return array, ffi.from_buffer(_INT64_POINTER, array)


def new_floats(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """An array of f32 that the library writes, and the pointer to it."""
    array = np.empty(shape, np.float32)
    return array, ffi.from_buffer(_FLOAT_POINTER, array)
