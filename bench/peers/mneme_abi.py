# SPDX-License-Identifier: Apache-2.0
"""The few calls of mneme.h that the comparison needs, by ctypes. Structs are those of mneme.h, field by field; the
library checks their sizes."""

import ctypes as c

import numpy as np

F32, F16 = 1, 2
STORED = {"f32": 1, "f16": 2, "bf16": 3, "i8": 4}  # what a memory may keep its rows as
BYTES = {"f32": 4, "f16": 2, "bf16": 2, "i8": 1}
CPU = 1
MEMORY_ONLY = 2

_P = c.c_void_p
_I32 = c.c_int32
_I64 = c.c_int64
_F = c.c_float


def _struct(name, *fields):
    return type(name, (c.Structure,), {"_fields_": [("struct_size", c.c_size_t), *fields]})


class Tensor(c.Structure):
    _fields_ = [("data", _P), ("dtype", _I32), ("device_type", _I32), ("device_ordinal", _I32), ("ndim", _I32),
                ("shape", c.POINTER(_I64)), ("strides", c.POINTER(_I64))]


TensorPointer = c.POINTER(Tensor)

LayerDesc = _struct(
    "LayerDesc", ("layer", _I32), ("q_heads", _I32), ("kv_heads", _I32), ("key_dim", _I32), ("value_dim", _I32),
    ("scale", _F), ("soft_cap", _F), ("window", _I32), ("rotary_layout", _I32), ("rotary_pairs", _I32),
    ("rotary_inverse_frequencies", _P), ("rotary_magnitude", _F))

StoreOptions = _struct(
    "StoreOptions", ("mode", _I32), ("must_exist", _I32), ("threads", _I32), ("background", _I32),
    ("ignore_index_blobs", _I32), ("ram_budget_bytes", _I64), ("disk_budget_bytes", _I64), ("parallel_for", _P),
    ("parallel_for_context", _P), ("parallel_for_width", _I32), ("log", _P), ("log_context", _P))

MemoryOptions = _struct(
    "MemoryOptions", ("stored_dtype", _I32), ("normalise_keys", _I32), ("keys_rotated", _I32), ("max_tokens", _I64),
    ("max_bytes", _I64), ("pinned_tokens", _I64), ("segment_tokens", _I64), ("index", c.c_char_p))

AppendArgs = _struct(
    "AppendArgs", ("layer", _I32), ("keys", TensorPointer), ("values", TensorPointer), ("positions", _P),
    ("token_ids", _P), ("stream", _P))

AttendArgs = _struct(
    "AttendArgs", ("layer", _I32), ("query", TensorPointer), ("memory_query", TensorPointer), ("query_offsets", _P),
    ("query_positions", _P), ("query_local_positions", _P), ("local_keys", TensorPointer),
    ("local_values", TensorPointer), ("local_offsets", _P), ("local_mask", _I32), ("mask_offsets", _P),
    ("mask_window", _I64), ("mask_bits", _P), ("mask_bits_stride", _I64), ("snapshots", _P), ("memory_begin", _P),
    ("memory_end", _P), ("position_policy", _I32), ("normalise_query", _I32), ("fusion", _I32), ("top_k", _P),
    ("distance", _P), ("memory_bias", _P), ("decay", _P), ("scale", _P), ("gate", _P), ("default_top_k", _I64),
    ("default_distance", _F), ("decay_beyond", _F), ("output", TensorPointer), ("log_sum_exp", _P),
    ("retrieved_tokens", _P), ("retrieved_scores", _P), ("retrieved_stride", _I64), ("memory_mass", _P),
    ("statuses", _P), ("stream", _P))

SearchArgs = _struct(
    "SearchArgs", ("layer", _I32), ("query", TensorPointer), ("query_offsets", _P), ("query_positions", _P),
    ("query_local_positions", _P), ("snapshots", _P), ("memory_begin", _P), ("memory_end", _P),
    ("position_policy", _I32), ("normalise_query", _I32), ("distance", _P), ("decay", _P), ("scale", _P),
    ("default_distance", _F), ("decay_beyond", _F), ("top_k", _I64), ("tokens", _P), ("scores", _P),
    ("keys", TensorPointer), ("values", TensorPointer))


def _new(struct, **fields):
    return struct(struct_size=c.sizeof(struct), **fields)


def tensor(array):
    """A tensor over a contiguous numpy array, which must outlive it."""
    assert array.flags.c_contiguous
    shape = (_I64 * array.ndim)(*array.shape)
    dtype = {np.dtype(np.float32): F32, np.dtype(np.float16): F16}[array.dtype]
    return Tensor(array.ctypes.data, dtype, CPU, 0, array.ndim, shape, None)


class Library:
    def __init__(self, path):
        self._lib = c.CDLL(path)
        self._lib.mneme_last_error.restype = c.c_char_p
        self._lib.mneme_version.restype = c.c_char_p

    def version(self):
        return self._lib.mneme_version().decode()

    def __getattr__(self, name):
        function = getattr(self._lib, "mneme_" + name)

        def call(*arguments):
            if function(*arguments) != 0:
                raise RuntimeError(f"mneme_{name}: {self._lib.mneme_last_error().decode()}")
        return call


class Memory:
    """A store in `folder` with one memory of one layer that holds `keys` and `values`, f16 [kv_heads, rows, dim], as
    type `stored`."""

    def __init__(self, library, folder, keys, values, group, scale, threads, stored="f16"):
        self._library = library
        kv_heads, rows, dim = keys.shape
        self._q_heads, self._dim = kv_heads * group, dim
        self._store, self._memory, card = _P(), _P(), _P()
        options = _new(StoreOptions, threads=threads)
        library.store_open(folder.encode(), c.byref(options), c.byref(self._store))
        library.card_create(b"peers", b"0", c.byref(card))
        layer = _new(LayerDesc, q_heads=self._q_heads, kv_heads=kv_heads, key_dim=dim, value_dim=dim, scale=scale)
        library.card_add_layer(card, c.byref(layer))
        memory = _new(MemoryOptions, stored_dtype=STORED[stored])
        library.memory_create(self._store, b"m", card, c.byref(memory), c.byref(self._memory))
        library._lib.mneme_card_release(card)
        for begin in range(0, rows, 4096):
            block = [np.ascontiguousarray(part[:, begin:begin + 4096].transpose(1, 0, 2)) for part in (keys, values)]
            tensors = [tensor(part) for part in block]
            args = _new(AppendArgs, keys=c.pointer(tensors[0]), values=c.pointer(tensors[1]))
            library.memory_append(self._memory, c.byref(args))
            if (begin + 4096) % 65536 == 0:  # what is not committed waits in RAM a second time
                library.memory_commit(self._memory, 0, None)
        library.memory_commit(self._memory, 0, None)

    def searcher(self, k):
        """query f32 [q_heads, dim] -> tokens [q_heads, k]."""
        query, tokens = np.empty((1, self._q_heads, self._dim), np.float32), np.empty((1, self._q_heads, k), np.int64)
        query_tensor = tensor(query)
        args = _new(SearchArgs, query=c.pointer(query_tensor), top_k=k, tokens=tokens.ctypes.data)

        def search(values):
            query[0] = values
            self._library.search(c.byref(self._memory), c.c_size_t(1), c.byref(args))
            return tokens[0]
        return search

    def attender(self, k, local_keys=None, local_values=None):
        """query f32 [q_heads, dim] -> (output, tokens); local f16 [rows, kv_heads, dim]; none: of the memory alone."""
        query, output = (np.empty((1, self._q_heads, self._dim), np.float32) for _ in range(2))
        tokens = np.empty((1, self._q_heads, k), np.int64)
        arrays = [query, output] + ([] if local_keys is None else [local_keys, local_values])
        tensors = [tensor(array) for array in arrays]
        args = _new(AttendArgs, query=c.pointer(tensors[0]), output=c.pointer(tensors[1]), default_top_k=k,
                    retrieved_tokens=tokens.ctypes.data, retrieved_stride=k)
        if local_keys is None:
            args.fusion = MEMORY_ONLY
        else:
            args.local_keys, args.local_values = c.pointer(tensors[2]), c.pointer(tensors[3])

        def attend(values):
            query[0] = values
            self._library.attend(c.byref(self._memory), c.c_size_t(1), c.byref(args))
            return output[0], tokens[0]
        attend.arrays = arrays, tensors
        return attend

    def close(self):
        self._library.memory_close(self._memory)
        self._library.store_close(self._store)
