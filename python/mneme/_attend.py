# SPDX-License-Identifier: Apache-2.0
"""Attention over memories and local windows, search, and the merge of two attentions."""
from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
import numpy.typing as npt

from mneme import _tensors
from mneme._arrays import Integers, PerHead, floats, integers, new_floats, new_integers, per_head
from mneme._backward import GRADIENTS, Gradient, Gradients, backward
from mneme._errors import InvalidArgument, Status, check
from mneme._native import NULL, ffi, lib, new_struct
from mneme._numbers import FUSIONS, MASKS, POSITION_POLICIES, Fusion, PositionPolicy, number_of

if TYPE_CHECKING:
    from mneme._graph import Graph
    from mneme._memory import Memory
    from mneme._snapshot import Snapshot

#: Which local rows a query sees: a rule, or a bool array [tokens, local rows] in which True is seen.
Mask = Union[Literal["causal", "sliding_window", "none"], Any]
#: What attend reports beside its output.
Detail = Literal["log_sum_exp", "tokens", "scores", "memory_mass"]
DETAILS: tuple[Detail, ...] = ("log_sum_exp", "tokens", "scores", "memory_mass")
#: What search reports beside the tokens.
SearchDetail = Literal["scores", "keys", "values"]
SEARCH_DETAILS: tuple[SearchDetail, ...] = ("scores", "keys", "values")
DEFAULT_SEARCH_DETAILS: tuple[SearchDetail, ...] = ("scores",)

_MEMORIES = ffi.typeof("mneme_memory*[]")
_F32 = npt.NDArray[np.float32]
_I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Attention:
    """What attend computed. A detail that was not wanted is None."""

    output: Any
    """[tokens, q_heads, value_dim]: `out`, or a new array of the query's kind and type"""
    log_sum_exp: _F32 | None
    """[tokens, q_heads] over the local and retrieved rows of the fusion"""
    tokens: _I64 | None
    """[tokens, q_heads, top_k] token indices of retrieved rows, best first, -1 pads"""
    scores: _F32 | None
    """[tokens, q_heads, top_k] their logits; -inf pads"""
    memory_mass: _F32 | None
    """[tokens, q_heads] the memory's share of the attention weight, 0 to 1"""
    statuses: tuple[Status, ...] | None = None
    """of each sequence, where they were asked for"""
    _call: ForwardCall | None = dataclasses.field(default=None, repr=False, compare=False)

    def backward(self, output_gradient: Any, *, log_sum_exp_gradient: Any = None,
                 want: Collection[Gradient] = GRADIENTS) -> Gradients:
        """The gradients of a loss with respect to the inputs of this call, which was made with `differentiable=True`.

        `output_gradient` [tokens, q_heads, value_dim] and `log_sum_exp_gradient` [tokens, q_heads] are the loss's
        gradients with respect to the outputs. The set of retrieved rows counts as constant. The inputs must be
        unchanged, and the memories must show what the call saw: a call whose memories grow or lose rows meanwhile needs
        snapshots, which are still held, or `memory_end`. All arrays lie in host memory.

        >>> keys = np.ones((3, 1, 64), np.float32)
        >>> call = dict(layer=0, query=keys, local_keys=keys, local_values=keys, differentiable=True)
        >>> result = mneme.attend([None], **call)
        >>> result.backward(np.ones((3, 1, 64), np.float32)).local_values[:, 0, 0].tolist()  # doctest: +ELLIPSIS
        [1.833..., 0.833..., 0.333...]
        """
        if self._call is None:
            raise InvalidArgument("attend: expected a call with differentiable=True, got one without")
        return backward(self._call, output_gradient, log_sum_exp_gradient, want)


@dataclasses.dataclass(frozen=True)
class Found:
    """What search found. What was not wanted is None."""

    tokens: _I64
    """[tokens, q_heads, top_k] token indices, best first, -1 pads"""
    scores: _F32 | None
    """[tokens, q_heads, top_k] logits; -inf pads"""
    keys: _F32 | None
    """[tokens, q_heads, top_k, key_dim]; zeros pad"""
    values: _F32 | None
    """[tokens, q_heads, top_k, value_dim]; zeros pad"""


@dataclasses.dataclass(frozen=True)
class Merged:
    """Attention over two sets of rows as one."""

    output: Any
    """[tokens, heads, value_dim]: `out`, or a new array like `a_output`"""
    log_sum_exp: _F32 | None
    """[tokens, heads]; None where the inputs had none"""


class ForwardCall:
    """Arguments of one call, which live until it has returned."""

    def __init__(self, struct: str, memories: Sequence[Memory | None], layer: int) -> None:
        self.args = new_struct(struct)
        self.args.layer = layer
        self.batch = len(memories)
        pointers = [NULL if memory is None else memory._handle.get() for memory in memories]
        self.pointers = ffi.new(_MEMORIES, pointers)
        self.memories = memories
        self.keep: list[Any] = []
        self.tensors: dict[str, _tensors.Tensor] = {}
        self.bits: str | None = None

    def set(self, field: str, pointer: Any) -> None:
        """Sets a pointer of the struct and keeps what it points to."""
        self.keep.append(pointer)
        setattr(self.args, field, pointer)

    def set_tensor(self, field: str, tensor: _tensors.Tensor) -> None:
        self.tensors[field] = tensor
        setattr(self.args, field, tensor.pointer)

    def set_optional_tensor(self, field: str, value: Any, bits: str | None,
                            stream: int | None) -> tuple[int, ...] | None:
        """Returns: the tensor's shape; None where none was given."""
        if value is None:
            return None
        tensor = _tensors.tensor_of(field, value, bits=bits, stream=stream)
        self.set_tensor(field, tensor)
        return tensor.shape

    def set_integers(self, field: str, value: Integers | None, count: int) -> None:
        if value is not None:
            self.set(field, integers(field, value, count))

    def set_per_head(self, field: str, value: PerHead | None, heads: int) -> None:
        if value is not None:
            self.set(field, per_head(field, value, heads))

    def set_snapshots(self, snapshots: Sequence[Snapshot | None] | None) -> None:
        if snapshots is None:
            return
        if len(snapshots) != self.batch:
            raise InvalidArgument(f"snapshots: expected {self.batch}, one for each memory, got {len(snapshots)}")
        pointers = [NULL if snapshot is None else snapshot._pointer() for snapshot in snapshots]
        self.set("snapshots", ffi.new("mneme_snapshot*[]", pointers))

    def set_shared(self, tokens: int, heads: int, query_offsets: Integers | None, query_positions: Integers | None,
                   query_local_positions: Integers | None, snapshots: Sequence[Snapshot | None] | None,
                   memory_begin: Integers | None, memory_end: Integers | None, position_policy: PositionPolicy,
                   normalise_query: bool, distance: PerHead | None, decay: PerHead | None, decay_beyond: float,
                   scale: PerHead | None) -> None:
        """The fields that attend and search have in common."""
        args = self.args
        if position_policy != "as_stored":
            args.position_policy = number_of("position_policy", position_policy, POSITION_POLICIES)
        args.normalise_query = int(normalise_query)
        args.decay_beyond = decay_beyond
        self.set_integers("query_offsets", query_offsets, self.batch + 1)
        self.set_integers("query_positions", query_positions, tokens)
        self.set_integers("query_local_positions", query_local_positions, tokens)
        self.set_integers("memory_begin", memory_begin, self.batch)
        self.set_integers("memory_end", memory_end, self.batch)
        self.set_snapshots(snapshots)
        self.set_per_head("distance", distance, heads)
        self.set_per_head("decay", decay, heads)
        self.set_per_head("scale", scale, heads)

    def layer_dims(self, key_dim: int) -> tuple[int, int]:
        """Key and value dim of the layer; where it is not known the library refuses the call by name."""
        memory = next((memory for memory in self.memories if memory is not None), None)
        layer = memory._layer(self.args.layer) if memory is not None else None
        return (key_dim, key_dim) if layer is None else (layer.key_dim, layer.value_dim)


def _set_mask(call: ForwardCall, mask: Mask, mask_window: int, mask_offsets: Integers | None, tokens: int) -> None:
    call.set_integers("mask_offsets", mask_offsets, call.batch)
    if isinstance(mask, str):
        if mask != "causal":
            call.args.local_mask = number_of("mask", mask, MASKS)
        call.args.mask_window = mask_window
        return
    bits = np.asarray(mask)
    if bits.dtype != np.bool_ or bits.ndim != 2 or bits.shape[0] != tokens:
        raise InvalidArgument(
            f"mask: expected a rule or bool [{tokens}, local rows], got {bits.dtype} {list(bits.shape)}"
        )
    packed = np.packbits(bits, axis=1, bitorder="little")
    call.args.local_mask = lib.MNEME_MASK_BITS
    call.args.mask_bits_stride = packed.shape[1]
    call.set("mask_bits", ffi.from_buffer("uint8_t[]", packed))


def _set_top_k(call: ForwardCall, top_k: int | Integers, heads: int) -> int:
    """Returns: the greatest, which is the room for retrieved rows."""
    if isinstance(top_k, (int, np.integer)) and top_k != 0:
        call.args.default_top_k = top_k
        return max(1, int(top_k))
    numbers = integers("top_k", [0] * heads if isinstance(top_k, (int, np.integer)) else top_k, heads)
    call.set("top_k", numbers)
    return max(1, max(numbers, default=1))


def attend(
    memories: Sequence[Memory | None], *, layer: int, query: Any, memory_query: Any = None,
    query_offsets: Integers | None = None, query_positions: Integers | None = None,
    query_local_positions: Integers | None = None, local_keys: Any = None, local_values: Any = None,
    local_offsets: Integers | None = None, mask: Mask = "causal", mask_window: int = 0,
    mask_offsets: Integers | None = None, snapshots: Sequence[Snapshot | None] | None = None,
    memory_begin: Integers | None = None, memory_end: Integers | None = None,
    position_policy: PositionPolicy = "as_stored", normalise_query: bool = False, fusion: Fusion = "joint",
    top_k: int | Integers = 32, distance: PerHead | None = None, memory_bias: PerHead | None = None,
    decay: PerHead | None = None, decay_beyond: float = 1.0, scale: PerHead | None = None,
    gate: PerHead | None = None, out: Any = None, want: Collection[Detail] = DETAILS, statuses: bool = False,
    dtype: Literal["bf16", "f16"] | None = None, stream: Any = None, graph: Graph | None = None,
    differentiable: bool = False,
) -> Attention:
    """Attends to several sequences in one call: each has its own memory, or None.

    The arguments are those of `Memory.attend`, except for these. Queries and local rows of all sequences are packed one
    after another: sequence b has the queries [query_offsets[b], query_offsets[b + 1]) and the local rows
    [local_offsets[b], local_offsets[b + 1]); both may be left out for one sequence. `snapshots`, `memory_begin`,
    `memory_end` and `mask_offsets` have one entry for each sequence. A mask of bits has as many columns as the longest
    local window.

    `statuses` True: a sequence that fails (damaged rows, or a query with NaN or infinity) gets a zero output and its
    status in the result's `statuses`, and the others are served; otherwise the first failure raises. `graph` is for a
    stream that is being captured. `differentiable` True: the result's `backward` can be called, and it keeps the
    inputs.

    >>> card = Card("tiny", "sha256:…", [Layer(0, q_heads=4, kv_heads=2, key_dim=64)])
    >>> rows = np.ones((3, 2, 64), np.float32)
    >>> with mneme.open(folder) as store:
    ...     one = store.create("one", card)
    ...     one.append(layer=0, keys=rows, values=rows)
    ...     query = np.ones((2, 4, 64), np.float32)
    ...     result = mneme.attend([one, None], layer=0, query=query, query_offsets=[0, 1, 2], local_keys=rows[:2],
    ...                           local_values=rows[:2], local_offsets=[0, 1, 2])
    >>> result.memory_mass[:, 0].round(3).tolist()
    [0.75, 0.0]
    """
    call = ForwardCall("mneme_attend_args", memories, layer)
    query_tensor = _tensors.tensor_of("query", query, bits=dtype)
    tokens, heads, key_dim = _tensors.three_dims("query", query_tensor, "tokens, q_heads, key_dim")
    address = _tensors.stream_of(stream, query_tensor)
    call.set_tensor("query", query_tensor)
    call.set_optional_tensor("memory_query", memory_query, dtype, address)
    call.set_optional_tensor("local_keys", local_keys, dtype, address)
    value_shape = call.set_optional_tensor("local_values", local_values, dtype, address)
    call.set_shared(tokens, heads, query_offsets, query_positions, query_local_positions, snapshots, memory_begin,
                    memory_end, position_policy, normalise_query, distance, decay, decay_beyond, scale)
    call.set_integers("local_offsets", local_offsets, call.batch + 1)
    _set_mask(call, mask, mask_window, mask_offsets, tokens)
    if fusion != "joint":
        call.args.fusion = number_of("fusion", fusion, FUSIONS)
    room = _set_top_k(call, top_k, heads)
    call.set_per_head("memory_bias", memory_bias, heads)
    call.set_per_head("gate", gate, heads)
    if out is None:
        value_dim = call.layer_dims(key_dim)[1] if value_shape is None else value_shape[-1]
        out = _tensors.new_like("out", query_tensor, (tokens, heads, value_dim))
    call.set_tensor("output", _tensors.tensor_of("out", out, bits=dtype, stream=address, writable=True))
    details = _set_details(call, ("tokens", *want) if differentiable else want, tokens, heads, room)
    codes = ffi.new("int32_t[]", call.batch) if statuses else NULL
    call.args.statuses = codes
    if address is not None:
        call.set("stream", _tensors.stream_pointer(address))
    if graph is not None:
        call.args.graph = graph._pointer(tokens)
    check(lib.mneme_attend(call.pointers, call.batch, call.args))
    call.bits = dtype
    call.keep.append(codes)
    return Attention(out, *details, tuple(Status(code) for code in codes) if statuses else None,
                     call if differentiable else None)


def _set_details(call: ForwardCall, want: Collection[str], tokens: int, heads: int,
                 room: int) -> tuple[Any, Any, Any, Any]:
    log_sum_exp = retrieved = scores = mass = None
    for name in want:
        if name not in DETAILS:
            raise InvalidArgument(f"want: expected names of {DETAILS}, got {name!r}")
    if "log_sum_exp" in want:
        log_sum_exp, pointer = new_floats((tokens, heads))
        call.set("log_sum_exp", pointer)
    if "tokens" in want:
        retrieved, pointer = new_integers((tokens, heads, room))
        call.set("retrieved_tokens", pointer)
    if "scores" in want:
        scores, pointer = new_floats((tokens, heads, room))
        call.set("retrieved_scores", pointer)
    if "memory_mass" in want:
        mass, pointer = new_floats((tokens, heads))
        call.set("memory_mass", pointer)
    call.args.retrieved_stride = room
    return log_sum_exp, retrieved, scores, mass


def search(
    memories: Sequence[Memory | None], *, layer: int, query: Any, query_offsets: Integers | None = None,
    query_positions: Integers | None = None, query_local_positions: Integers | None = None,
    snapshots: Sequence[Snapshot | None] | None = None, memory_begin: Integers | None = None,
    memory_end: Integers | None = None, position_policy: PositionPolicy = "as_stored", normalise_query: bool = False,
    top_k: int = 32, distance: PerHead | None = None, decay: PerHead | None = None, decay_beyond: float = 1.0,
    scale: PerHead | None = None, want: Collection[SearchDetail] = DEFAULT_SEARCH_DETAILS,
    dtype: Literal["bf16", "f16"] | None = None,
) -> Found:
    """Finds each query head's best rows, for several sequences in one call.

    The arguments are those of `Memory.search`; queries are packed, and `snapshots`, `memory_begin` and `memory_end`
    have one entry for each sequence, as of `attend`. At least one memory is not None.
    """
    call = ForwardCall("mneme_search_args", memories, layer)
    query_tensor = _tensors.tensor_of("query", query, bits=dtype)
    tokens, heads, key_dim = _tensors.three_dims("query", query_tensor, "tokens, q_heads, key_dim")
    call.set_tensor("query", query_tensor)
    call.set_shared(tokens, heads, query_offsets, query_positions, query_local_positions, snapshots, memory_begin,
                    memory_end, position_policy, normalise_query, distance, decay, decay_beyond, scale)
    if not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise InvalidArgument(f"top_k: expected an integer of 1 or more, got {top_k!r}")
    call.args.top_k = top_k
    found, pointer = new_integers((tokens, heads, top_k))
    call.set("tokens", pointer)
    scores = keys = values = None
    for name in want:
        if name not in SEARCH_DETAILS:
            raise InvalidArgument(f"want: expected names of {SEARCH_DETAILS}, got {name!r}")
    if "scores" in want:
        scores, pointer = new_floats((tokens, heads, top_k))
        call.set("scores", pointer)
    stored_key_dim, stored_value_dim = call.layer_dims(key_dim)
    if "keys" in want:
        keys = np.empty((tokens, heads, top_k, stored_key_dim), np.float32)
        call.set_tensor("keys", _tensors.tensor_of("keys", keys))
    if "values" in want:
        values = np.empty((tokens, heads, top_k, stored_value_dim), np.float32)
        call.set_tensor("values", _tensors.tensor_of("values", values))
    check(lib.mneme_search(call.pointers, call.batch, call.args))
    return Found(found, scores, keys, values)


def merge(
    a_output: Any, a_log_sum_exp: Any, b_output: Any, b_log_sum_exp: Any, *, gate: PerHead | None = None,
    out: Any = None, dtype: Literal["bf16", "f16"] | None = None,
) -> Merged:
    """Makes one attention of those over two disjoint sets of rows, for hosts with a kernel of their own.

    `a_output` and `b_output` are [tokens, heads, value_dim], the log-sum-exps [tokens, heads], -inf for an empty set.
    With a `gate`, one number for each head, the output is sigmoid(gate) * a + (1 - sigmoid(gate)) * b; without one the
    sets are weighed by their log-sum-exps. The log-sum-exps may be None with a gate. `out` may be `a_output` or
    `b_output`.

    >>> a = np.full((1, 1, 2), 1.0, np.float32)
    >>> b = np.full((1, 1, 2), 3.0, np.float32)
    >>> equal = np.zeros((1, 1), np.float32)
    >>> mneme.merge(a, equal, b, equal).output.tolist()
    [[[2.0, 2.0]]]
    """
    args = new_struct("mneme_merge_args")
    a = _tensors.tensor_of("a_output", a_output, bits=dtype)
    b = _tensors.tensor_of("b_output", b_output, bits=dtype)
    tokens, heads, _ = _tensors.three_dims("a_output", a, "tokens, heads, value_dim")
    if out is None:
        out = _tensors.new_like("out", a, a.shape)
    output = _tensors.tensor_of("out", out, bits=dtype, writable=True)
    args.a_output, args.b_output, args.output = a.pointer, b.pointer, output.pointer
    keep = []
    for name, value in (("a_log_sum_exp", a_log_sum_exp), ("b_log_sum_exp", b_log_sum_exp)):
        if value is not None:
            keep.append(floats(name, value, (tokens, heads)))
            setattr(args, name, keep[-1])
    if gate is not None:
        keep.append(per_head("gate", gate, heads))
        args.gate = keep[-1]
    log_sum_exp = None
    if a_log_sum_exp is not None and b_log_sum_exp is not None:
        log_sum_exp, pointer = new_floats((tokens, heads))
        args.log_sum_exp = pointer
    check(lib.mneme_merge(args))
    return Merged(out, log_sum_exp)
