# SPDX-License-Identifier: Apache-2.0
"""Arrays of Python as tensors of the ABI, without a copy: NumPy, PyTorch, and everything that speaks DLPack.

PyTorch is not imported: a tensor is what has `data_ptr`, `stride`, `dtype` and `device`.
"""
from __future__ import annotations

import sys
from typing import Any

import numpy as np

from mneme import _dlpack
from mneme._errors import InvalidArgument
from mneme._native import NULL, ffi, lib

_NEW_TENSOR = ffi.typeof("mneme_tensor*")
_NEW_NUMBERS = ffi.typeof("int64_t[]")
_HOST = (_dlpack.CPU, 0)
_MAX_DIMS = 8

# NumPy's types by their objects; ml_dtypes' bfloat16 is found by its name and added here when it first comes.
_NUMPY_DTYPES: dict[Any, str] = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", np.dtype(np.uint16): "u16"}
_BUFFER_DTYPES = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16"}
# PyTorch's types by their objects, found by their names.
_TORCH_DTYPES: dict[Any, str] = {}
_TORCH_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "uint16": "u16"}
_NUMBERS = {"f32": lib.MNEME_DTYPE_F32, "f16": lib.MNEME_DTYPE_F16, "bf16": lib.MNEME_DTYPE_BF16}
_arrays: dict[tuple[int, ...], Any] = {}
_MAX_ARRAYS = 4096
_ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u16": 2}
_EXPECTED = "float32, float16 or bfloat16"


class Tensor:
    """One argument of a call: `pointer` is what the ABI takes, valid as long as this object lives."""

    __slots__ = ("_keep", "dtype", "on_device", "pointer", "shape", "source")

    def __init__(self, source: Any, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, address: Any,
                 device: tuple[int, int], keep: Any) -> None:
        """`dtype`: a name of the ABI's; `strides`: in elements, None for row-major; `device`: type and ordinal."""
        self.source = source
        self.dtype = dtype
        self.shape = shape
        self.on_device = device[0] == _dlpack.CUDA
        shape_array, stride_array = _numbers(shape), NULL if strides is None else _numbers(strides)
        kind, ordinal = device
        tensor = (address, _NUMBERS[dtype], kind, ordinal, len(shape), shape_array, stride_array)
        self.pointer = ffi.new(_NEW_TENSOR, tensor)
        self._keep = (keep, shape_array, stride_array)


def _numbers(numbers: tuple[int, ...]) -> Any:
    """The numbers as an array of the ABI, which nobody changes; the same for the same numbers of many calls."""
    array = _arrays.get(numbers)
    if array is None:
        if len(_arrays) >= _MAX_ARRAYS:
            _arrays.clear()
        array = _arrays[numbers] = ffi.new(_NEW_NUMBERS, numbers)
    return array


def is_torch(value: Any) -> bool:
    return hasattr(value, "data_ptr") and hasattr(value, "stride") and hasattr(value, "device")


def tensor_of(name: str, value: Any, *, bits: str | None = None, stream: int | None = None,
              writable: bool = False) -> Tensor:
    """Borrows an array for one call.

    `bits`: what elements of uint16 stand for, "bf16" or "f16". `stream`: on which an array of DLPack is to be ready.
    Raises InvalidArgument, which calls the array `name`.
    """
    if isinstance(value, np.ndarray):
        flags = value.flags
        dtype = _BUFFER_DTYPES.get(value.dtype)
        if dtype is not None and flags.c_contiguous and value.ndim == 3 and (flags.writeable or not writable):
            address = ffi.from_buffer(value)  # the common case, in few steps
            return Tensor(value, dtype, value.shape, None, address, _HOST, address)
        return _numpy_tensor(name, value, bits, writable)
    if is_torch(value):
        return _torch_tensor(name, value, bits)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        return _dlpack_tensor(name, value, bits, stream, writable)
    raise InvalidArgument(
        f"{name}: expected a NumPy array, a PyTorch tensor or an object with __dlpack__, got {type(value).__name__}"
    )


def _check(name: str, dtype: str | None, given: object, bits: str | None, ndim: int) -> str:
    """The name of the ABI's type."""
    if dtype == "u16" and bits in ("bf16", "f16"):
        dtype = bits
    elif dtype == "u16":
        raise InvalidArgument(f'{name}: expected elements of {_EXPECTED}, got uint16 (give dtype="bf16" for its bits)')
    if dtype is None:
        raise InvalidArgument(f"{name}: expected elements of {_EXPECTED}, got {given}")
    if not 1 <= ndim <= _MAX_DIMS:
        raise InvalidArgument(f"{name}: expected 1 to {_MAX_DIMS} dimensions, got {ndim}")
    return dtype


def _numpy_dtype(dtype: Any) -> str | None:
    known = _NUMPY_DTYPES.get(dtype)
    if known is None and dtype.name == "bfloat16" and dtype.isnative:
        known = _NUMPY_DTYPES[dtype] = "bf16"
    return known


def _numpy_tensor(name: str, array: Any, bits: str | None, writable: bool) -> Tensor:
    found = _numpy_dtype(array.dtype)
    dtype = _check(name, found, array.dtype, bits, array.ndim)
    flags = array.flags
    if writable and not flags.writeable:
        raise InvalidArgument(f"{name}: expected an array that can be written to, got a read-only one")
    strides = None
    if flags.c_contiguous and found != "bf16":
        address = ffi.from_buffer(array)
    else:  # the buffer protocol has no strides here, and no bfloat16
        address = ffi.cast("void*", array.__array_interface__["data"][0])
        strides = _element_strides(name, array, _ITEM_BYTES[dtype])
    return Tensor(array, dtype, array.shape, strides, address, _HOST, (array, address))


def _element_strides(name: str, array: Any, size: int) -> tuple[int, ...]:
    for step in array.strides:
        if step % size != 0:
            raise InvalidArgument(f"{name}: expected strides of whole elements of {size} bytes, got {array.strides}")
    return tuple(step // size for step in array.strides)


def _torch_dtype(dtype: Any) -> str | None:
    known = _TORCH_DTYPES.get(dtype)
    if known is None:
        known = _TORCH_NAMES.get(str(dtype).rpartition(".")[2])
        if known is not None:
            _TORCH_DTYPES[dtype] = known
    return known


def _torch_tensor(name: str, tensor: Any, bits: str | None) -> Tensor:
    shape = tensor.shape
    dtype = _check(name, _torch_dtype(tensor.dtype), tensor.dtype, bits, len(shape))
    place = tensor.device
    kind = place.type
    if kind == "cpu":
        device = _HOST
    elif kind == "cuda":
        device = (_dlpack.CUDA, place.index or 0)
    else:
        raise InvalidArgument(f"{name}: expected a tensor on the CPU or a CUDA device, got one on {place}")
    address = ffi.cast("void*", tensor.data_ptr())
    return Tensor(tensor, dtype, tuple(shape), tuple(tensor.stride()), address, device, tensor)


def _dlpack_tensor(name: str, array: Any, bits: str | None, stream: int | None, writable: bool) -> Tensor:
    view = _dlpack.view_of(name, array, stream)
    dtype = _check(name, view.dtype, view.dtype, bits, len(view.shape))
    if writable and not view.writable:
        raise InvalidArgument(f"{name}: expected an array that can be written to, got a read-only one")
    device = (view.device_type, view.device_ordinal)
    return Tensor(array, dtype, view.shape, view.strides, ffi.cast("void*", view.address), device, view.capsule)


def three_dims(name: str, tensor: Tensor, dims: str) -> tuple[int, int, int]:
    """The shape of a tensor of three dimensions, which `dims` names. Arrays of the call are sized by it."""
    if len(tensor.shape) != 3:
        raise InvalidArgument(f"{name}: expected 3 dimensions ({dims}), got shape {list(tensor.shape)}")
    return tensor.shape[0], tensor.shape[1], tensor.shape[2]


def new_like(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Any:
    """An array for an output, of the kind, type and place of `tensor`."""
    source = tensor.source
    if isinstance(source, np.ndarray):
        return np.empty(shape, source.dtype)
    if hasattr(source, "new_empty"):
        return source.new_empty(shape)
    if tensor.on_device:
        raise InvalidArgument(f"{name}: expected an array to write to, since the input lies on a device; got none")
    return np.empty(shape, _numpy_type(tensor.dtype))


def _numpy_type(dtype: str) -> Any:
    if dtype == "bf16":
        try:
            import ml_dtypes
        except ImportError:
            return np.uint16
        return ml_dtypes.bfloat16
    return np.float32 if dtype == "f32" else np.float16


def stream_of(stream: Any, tensor: Tensor) -> int | None:
    """The address of a CUDA stream: given as a number, by PyTorch's `cuda_stream` or by CuPy's `ptr`.

    None for tensors in host memory, and PyTorch's current stream for its tensors where none was given.
    """
    if stream is None:
        if tensor.on_device and is_torch(tensor.source) and "torch" in sys.modules:
            current = sys.modules["torch"].cuda.current_stream(tensor.source.device)
            return int(current.cuda_stream)
        return None
    for attribute in ("cuda_stream", "ptr"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    return int(stream)


def stream_pointer(address: int | None) -> Any:
    """The ABI's stream; NULL for None. The caller keeps it until the call has returned."""
    if address is None:
        return NULL
    pointer = ffi.new("mneme_stream*")
    pointer.handle = ffi.cast("void*", address)
    return pointer
