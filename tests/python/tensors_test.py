# SPDX-License-Identifier: Apache-2.0
"""Arrays of NumPy, ml_dtypes, PyTorch and DLPack's other producers, without copies."""
from __future__ import annotations

import ctypes

import mneme
import numpy as np
import pytest
from conftest import LAYER, make_card, random_rows


class TorchDType:
    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"torch.{self.name}"


FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = map(TorchDType, ("float32", "float16", "bfloat16", "float64"))


class TorchDevice:
    type, index = "cpu", None

    def __repr__(self):
        return self.type


class TorchTensor:
    """What the package uses of a torch.Tensor."""

    dtypes = {np.dtype("f4"): FLOAT32, np.dtype("f2"): FLOAT16, np.dtype("u2"): BFLOAT16, np.dtype("f8"): FLOAT64}
    requires_grad = False

    def __init__(self, array):
        self.array = array
        self.dtype = self.dtypes[array.dtype]
        self.device = TorchDevice()
        self.shape = array.shape

    def data_ptr(self):
        return self.array.ctypes.data

    def stride(self):
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def new_empty(self, shape):
        return TorchTensor(np.empty(shape, self.array.dtype))


class Producer:
    """An array that is known by DLPack alone. `version` 1: as PyTorch and NumPy give it since DLPack 1.0."""

    def __init__(self, array, version=None, code=2, read_only=False, device=(1, 0)):
        self.array, self.version, self.code, self.read_only, self.device = array, version, code, read_only, device
        self.capsules = 0

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, **arguments):
        if "max_version" in arguments and self.version is None:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.capsules += 1
        array = self.array
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.strides = (ctypes.c_int64 * array.ndim)(*(step // array.itemsize for step in array.strides))
        tensor = [array.ctypes.data - 2, self.device[0] | self.device[1] << 32,
                  array.ndim | self.code << 32 | array.itemsize * 8 << 40 | 1 << 48,
                  ctypes.addressof(self.shape), ctypes.addressof(self.strides), 2]
        managed = [self.version, 0, 0, int(self.read_only), *tensor] if self.version else [*tensor, 0, 0]
        self.managed = (ctypes.c_uint64 * len(managed))(*managed)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        self.name = b"dltensor_versioned" if self.version else b"dltensor"
        return new(ctypes.addressof(self.managed), self.name, None)


def bf16_bits(array):
    """Rounds to bfloat16's bits by cutting; the numbers of the tests are exact in it."""
    return (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def exact_rows(seed, *shape):
    """Numbers that f32, f16 and bf16 have."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 4


ROWS, VALUES, QUERY = exact_rows(1, 20, 2, 64), exact_rows(2, 20, 2, 64), exact_rows(3, 1, 4, 64)


@pytest.fixture
def exact(store):
    made = store.create("exact", make_card(), dtype="f32")
    made.append(layer=LAYER, keys=ROWS, values=VALUES)
    return made


def read(memory):
    rows = memory.read(layer=LAYER)
    return rows.keys, rows.values


KINDS = {
    "f32": lambda a: a,
    "f16": lambda a: a.astype(np.float16),
    "torch f32": TorchTensor,
    "torch f16": lambda a: TorchTensor(a.astype(np.float16)),
    "torch bf16": lambda a: TorchTensor(bf16_bits(a)),
    "dlpack f32": Producer,
    "dlpack f16, version 1": lambda a: Producer(a.astype(np.float16), version=1),
    "dlpack bf16": lambda a: Producer(bf16_bits(a), code=4),
    "dlpack bf16, version 1": lambda a: Producer(bf16_bits(a), code=4, version=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_says_the_same(store, exact, kind):
    make = KINDS[kind]
    other = store.create("other", make_card(), dtype="f32")
    other.append(layer=LAYER, keys=make(ROWS), values=make(VALUES))
    for column, expected in zip(read(other), (ROWS, VALUES)):
        np.testing.assert_array_equal(column, expected)
    expected = exact.attend(layer=LAYER, query=QUERY, local_keys=ROWS[:3], local_values=VALUES[:3])
    result = other.attend(layer=LAYER, query=make(QUERY), local_keys=make(ROWS[:3]), local_values=make(VALUES[:3]),
                          out=np.empty((1, 4, 64), np.float32))
    np.testing.assert_array_equal(result.output, expected.output)
    np.testing.assert_array_equal(result.tokens, expected.tokens)


def test_bfloat16_as_bits(store, exact):
    other = store.create("other", make_card(), dtype="bf16")
    other.append(layer=LAYER, keys=bf16_bits(ROWS), values=bf16_bits(VALUES), dtype="bf16")
    np.testing.assert_array_equal(read(other)[0], ROWS)
    result = other.attend(layer=LAYER, query=bf16_bits(QUERY), dtype="bf16")
    assert result.output.dtype == np.uint16
    wide = (result.output.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(wide, exact.attend(layer=LAYER, query=QUERY).output, rtol=2**-7, atol=1e-6)
    with pytest.raises(mneme.InvalidArgument, match='query: .*uint16.*dtype="bf16"'):
        other.attend(layer=LAYER, query=bf16_bits(QUERY))


def test_ml_dtypes(store, exact):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    other = store.create("other", make_card(), dtype="bf16")
    other.append(layer=LAYER, keys=ROWS.astype(ml_dtypes.bfloat16), values=VALUES[:, ::-1].astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(read(other)[0], ROWS)
    np.testing.assert_array_equal(read(other)[1], VALUES[:, ::-1])
    result = other.attend(layer=LAYER, query=QUERY.astype(ml_dtypes.bfloat16))
    assert result.output.dtype == ml_dtypes.bfloat16
    assert exact.attend(layer=LAYER, query=Producer(bf16_bits(QUERY), code=4)).output.dtype == ml_dtypes.bfloat16


def test_strides_are_kept(store, exact):
    wide = np.zeros((20, 5, 96), np.float32)
    keys, values = wide[:, 1:3, 16:80], np.zeros((2, 20, 64), np.float32).transpose(1, 0, 2)
    keys[...], values[...] = ROWS, VALUES
    for number, kind in enumerate((lambda a: a, TorchTensor, Producer, lambda a: Producer(a, version=1))):
        other = store.create(f"strided-{number}", make_card(), dtype="f32")
        other.append(layer=LAYER, keys=kind(keys), values=kind(values))
        np.testing.assert_array_equal(read(other)[0], ROWS)
        np.testing.assert_array_equal(read(other)[1], VALUES)
    backwards = store.create("backwards", make_card(), dtype="f32")
    backwards.append(layer=LAYER, keys=ROWS[::-1], values=VALUES)
    np.testing.assert_array_equal(read(backwards)[0], ROWS[::-1])


@pytest.mark.parametrize("kind", [lambda a: a, TorchTensor, Producer, lambda a: Producer(a, version=1)])
def test_out_is_written_in_place(exact, kind):
    room = np.full((1, 8, 64), 77, np.float32)
    out = kind(room[:, ::2])
    result = exact.attend(layer=LAYER, query=QUERY, out=out)
    assert result.output is out
    np.testing.assert_array_equal(room[:, ::2], exact.attend(layer=LAYER, query=QUERY).output)
    assert (room[:, 1::2] == 77).all()


def test_outputs_are_of_the_query_s_kind(exact):
    assert exact.attend(layer=LAYER, query=QUERY.astype(np.float16)).output.dtype == np.float16
    made = exact.attend(layer=LAYER, query=TorchTensor(QUERY)).output
    assert isinstance(made, TorchTensor)
    np.testing.assert_array_equal(made.array, exact.attend(layer=LAYER, query=QUERY).output)
    assert exact.attend(layer=LAYER, query=Producer(QUERY)).output.dtype == np.float32


def test_nothing_is_copied(exact):
    """A tensor of a gigabyte, of which the call sees one row by its strides."""
    query = np.lib.stride_tricks.as_strided(QUERY, (1, 4, 64), (2**30, 256, 4))
    np.testing.assert_array_equal(exact.attend(layer=LAYER, query=query).output,
                                  exact.attend(layer=LAYER, query=QUERY).output)


@pytest.mark.parametrize(("array", "words"), [
    (QUERY.astype(np.float64), "query: expected elements of float32.*float64"),
    (QUERY.astype(">f4"), "query: expected elements.*>f4"),
    (QUERY.astype(np.int32), "query: .*int32"),
    (QUERY[0], "query: expected 3 dimensions.*4, 64"),
    (QUERY.tolist(), "query: expected a NumPy array, a PyTorch tensor or an object with __dlpack__, got list"),
    (QUERY[:, :, ::2].repeat(2, axis=1), "query: expected shape"),
    (np.zeros((1, 4, 128), np.float32)[:, :, ::2], "query.strides"),
    (np.zeros((1, 4, 64), [("a", "f4"), ("b", "u1")])["a"], "query: expected strides of whole elements"),
    (np.zeros(4 * 64 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(1, 4, 64), "query.data: expected an address"),
    (TorchTensor(QUERY.astype(np.float64)), "query: .*torch.float64"),
    (Producer(QUERY, code=0), "query: .*DLPack type 0"),
    (Producer(QUERY, version=2), "query: expected DLPack 1, got DLPack 2"),
    (Producer(QUERY, device=(10, 0)), "query: .*DLPack device 10"),
])
def test_arrays_that_no_tensor_can_be(exact, array, words):
    with pytest.raises(mneme.InvalidArgument, match=words):
        exact.attend(layer=LAYER, query=array)


def test_outputs_that_must_not_be_written(exact):
    frozen = np.zeros((1, 4, 64), np.float32)
    frozen.flags.writeable = False
    for out in (frozen, Producer(np.zeros((1, 4, 64), np.float32), version=1, read_only=True)):
        with pytest.raises(mneme.InvalidArgument, match="out: .*read-only"):
            exact.attend(layer=LAYER, query=QUERY, out=out)
    exact.attend(layer=LAYER, query=Producer(QUERY, version=1, read_only=True))
    exact.append(layer=LAYER, keys=np.broadcast_to(frozen[:, :2], (5, 2, 64)), values=np.zeros((5, 2, 64), "f4"))


def test_a_device_that_the_store_does_not_have(exact):
    tensor = TorchTensor(QUERY)
    tensor.device.type, tensor.device.index = "cuda", 0
    with pytest.raises(mneme.FailedPrecondition, match="device"):
        exact.attend(layer=LAYER, query=tensor, out=np.zeros((1, 4, 64), np.float32), stream=0)
    tensor.device.type = "meta"
    with pytest.raises(mneme.InvalidArgument, match="meta"):
        exact.attend(layer=LAYER, query=tensor)


def test_arrays_of_numbers(exact, store):
    other = store.create("numbers", make_card())
    other.append(layer=LAYER, keys=ROWS, values=VALUES, positions=list(range(5, 25)),
                 token_ids=np.arange(20, dtype=np.uint8)[::-1])
    rows = other.read(layer=LAYER, begin=2, end=5)
    assert rows.positions.tolist() == [7, 8, 9]
    assert rows.token_ids.tolist() == [17, 16, 15]
    for ids in ([2**31] * 20, [0.5] * 20, [1] * 19, [[1] * 20], "no numbers", [True] * 20):
        with pytest.raises(mneme.InvalidArgument, match="token_ids"):
            other.append(layer=LAYER, keys=ROWS, values=VALUES, token_ids=ids)
    assert random_rows(1, 2).shape == (2,)


def test_torch_itself():
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    merged = mneme.merge(tensor, torch.zeros(2, 3), tensor.transpose(0, 0), torch.zeros(2, 3))
    assert isinstance(merged.output, torch.Tensor)
    assert torch.equal(merged.output, tensor)
