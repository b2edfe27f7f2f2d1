# SPDX-License-Identifier: Apache-2.0
"""Reads the capsules of DLPack, through which arrays of other libraries lend their memory."""
from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

from mneme._errors import InvalidArgument
from mneme._native import ffi

CPU, CUDA, CUDA_PINNED = 1, 2, 3
_LEGACY_DEFAULT_STREAM = 1  # the protocol's number for CUDA's default stream
_READ_ONLY, _COPIED = 1, 2  # flags of a versioned tensor

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]

# (code, bits) to the package's names; lanes must be 1.
_DTYPES = {(2, 32): "f32", (2, 16): "f16", (4, 16): "bf16", (1, 16): "u16"}


class View(NamedTuple):
    """What a capsule describes. The memory is valid as long as `capsule` lives."""

    capsule: object
    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device_type: int
    device_ordinal: int
    writable: bool


def _capsule_of(array: Any, stream: int | None) -> object:
    """The capsule of an array: versioned where its library knows that, which says whether it may be written to."""
    arguments = {} if stream is None else {"stream": stream}
    try:
        return array.__dlpack__(max_version=(1, 0), **arguments)
    except TypeError:
        return array.__dlpack__(**arguments)


def view_of(name: str, array: Any, stream: int | None) -> View:
    """Borrows the memory of an array.

    Raises InvalidArgument for what no tensor of the library can be.
    """
    device_type, _ = array.__dlpack_device__()
    if device_type not in (CPU, CUDA, CUDA_PINNED):
        raise InvalidArgument(f"{name}: expected an array on the CPU or a CUDA device, got DLPack device {device_type}")
    if device_type == CUDA and stream is None:
        stream = _LEGACY_DEFAULT_STREAM
    capsule = _capsule_of(array, stream if device_type == CUDA else None)
    flags = 0
    if _is_valid(capsule, b"dltensor_versioned"):
        managed = ffi.cast("DLManagedTensorVersioned*", _get_pointer(capsule, b"dltensor_versioned"))
        if managed.major > 1:
            raise InvalidArgument(f"{name}: expected DLPack 1, got DLPack {managed.major}.{managed.minor}")
        flags = managed.flags
    else:
        managed = ffi.cast("DLManagedTensor*", _get_pointer(capsule, b"dltensor"))
    return _read(name, capsule, managed.dl_tensor, flags)


def _read(name: str, capsule: object, tensor: Any, flags: int) -> View:
    dtype = _DTYPES.get((tensor.dtype.code, tensor.dtype.bits)) if tensor.dtype.lanes == 1 else None
    if dtype is None:
        given = f"DLPack type {tensor.dtype.code} of {tensor.dtype.bits} bits"
        raise InvalidArgument(f"{name}: expected elements of float32, float16 or bfloat16, got {given}")
    shape = tuple(ffi.unpack(tensor.shape, tensor.ndim))
    if tensor.strides == ffi.NULL:
        strides = contiguous_strides(shape)
    else:
        strides = tuple(ffi.unpack(tensor.strides, tensor.ndim))
    address = int(ffi.cast("uintptr_t", tensor.data)) + tensor.byte_offset
    return View(
        capsule, address, dtype, shape, strides,
        CUDA if tensor.device.device_type == CUDA else CPU,
        tensor.device.device_id if tensor.device.device_type == CUDA else 0,
        not flags & (_READ_ONLY | _COPIED),
    )


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a row-major array."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))
