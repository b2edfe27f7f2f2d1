# SPDX-License-Identifier: Apache-2.0
"""Memories: named sequences of tokens with their keys and values."""
from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mneme import _attend, _tensors
from mneme._arrays import Integers, PerHead, integers, new_integers
from mneme._attachments import Attachments
from mneme._attend import DEFAULT_SEARCH_DETAILS, DETAILS, Attention, Detail, Found, Mask, SearchDetail
from mneme._card import Card, Layer, card_of, encode
from mneme._errors import InvalidArgument, check
from mneme._handles import Handle, StoreHandle, finalize_child
from mneme._native import NULL, ffi, lib, new_struct, text
from mneme._numbers import DTYPE_NAMES, DType, Durability, Fusion, PositionPolicy, Size, bytes_of
from mneme._progress import Progress, reporting
from mneme._snapshot import Snapshot

if TYPE_CHECKING:
    from types import TracebackType

    from mneme._store import Store

Column = Literal["keys", "values", "positions", "token_ids"]
COLUMNS: tuple[Column, ...] = ("keys", "values", "positions", "token_ids")


@dataclasses.dataclass(frozen=True)
class MemoryInfo:
    """A memory's state. The fields are those of `mneme_memory_info`."""

    next_token: int
    """index of the next token: whole tokens appended so far, evicted ones included"""
    tokens: int
    """whole tokens that are held"""
    tokens_durable: int
    """next_token as of the last commit"""
    first_kept: int
    """tokens from pinned_tokens to first_kept are evicted"""
    pinned_tokens: int
    segments: int
    tail_tokens: int
    """that are not sealed yet"""
    indexes: int
    """sealed ranges that have an index now"""
    bytes: int
    """of the rows of `tokens`"""
    ram_bytes: int
    """rows, codes and indices in memory, now"""
    layers: int
    stored_dtype: DType
    keys_rotated: bool
    normalise_keys: bool
    max_tokens: int
    """the bound in force; 0: none"""
    segment_tokens: int
    model_name: str
    """cut to 255 bytes, as the next one"""
    weights_fingerprint: str
    index: str
    attachment_bytes: int
    """of `Memory.attachments`"""
    name: str


@dataclasses.dataclass(frozen=True)
class Rows:
    """Stored rows of one layer, decoded. A column that was not wanted is None."""

    keys: npt.NDArray[np.float32] | None
    """[tokens, kv_heads, key_dim]"""
    values: npt.NDArray[np.float32] | None
    """[tokens, kv_heads, value_dim]"""
    positions: npt.NDArray[np.int64] | None
    """[tokens]"""
    token_ids: npt.NDArray[np.int32] | None
    """[tokens], -1 where none was given"""


def _info_of(memory: Any) -> MemoryInfo:
    info = new_struct("mneme_memory_info")
    check(lib.mneme_memory_get_info(memory, info))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(MemoryInfo):
        value = getattr(info, field.name)
        values[field.name] = value if isinstance(value, int) else text(value)
    values["stored_dtype"] = DTYPE_NAMES[values["stored_dtype"]]
    for flag in ("keys_rotated", "normalise_keys"):
        values[flag] = bool(values[flag])
    return MemoryInfo(**values)


def info_name(memory: Any) -> str:
    """The name of a memory, by its pointer."""
    info = new_struct("mneme_memory_info")
    check(lib.mneme_memory_get_info(memory, info))
    return text(info.name)


class Memory:
    """A named sequence of tokens that grows at its end, with a row for each token, layer and KV head.

    Made by `Store.create`, `Store.open`, `Store.get`, `store[name]` and `fork`. A context manager, which closes it at
    its end. Closing loses tokens that were not committed, and the log says so.

    Threads: `attend`, `search`, `read`, `info` and snapshots from any number of threads, also during any other call;
    `append`, `commit`, `truncate`, `evict`, `fork` and `maintain` one at a time, a second one raises `Busy`.
    """

    def __init__(self, store: Store, name: str, pointer: Any) -> None:
        """Use the store's methods."""
        self._store = store
        self._name = name
        self._store_handle: StoreHandle = store._handle
        self._handle: Handle = self._store_handle.adopt("memory", pointer)
        self._finalizer = weakref.finalize(self, finalize_child, self._store_handle, self._handle)
        self._card: Card | None = None

    # ---------------------------------------------------------------------------------------------- what it is

    @property
    def name(self) -> str:
        """The memory's name in its store."""
        return self._name

    @property
    def store(self) -> Store:
        """The store that it is in."""
        return self._store

    @property
    def card(self) -> Card:
        """The card that it was created with. Names of more than 255 bytes are cut."""
        if self._card is None:
            self._card = card_of(self._pointer())
        return self._card

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self._handle.pointer == NULL)

    def info(self) -> MemoryInfo:
        """The memory's state now. From any thread, also during other calls."""
        return _info_of(self._pointer())

    def __repr__(self) -> str:
        if self.closed:
            return f"<mneme.Memory {self._name!r}, closed>"
        info = self.info()
        return f"<mneme.Memory {self._name!r}: {info.tokens:,} tokens of {info.model_name}, {info.stored_dtype}>"

    # ---------------------------------------------------------------------------------------------- writing

    def append(self, *, layer: int, keys: Any, values: Any, positions: Integers | None = None,
               token_ids: Integers | None = None, dtype: Literal["bf16", "f16"] | None = None,
               stream: Any = None) -> None:
        """Appends tokens of one layer, which the next call can retrieve. Writes nothing to disk.

        Layers may run ahead of each other; a token is whole when every layer has it.

        Args:
            layer: the model's number of the layer.
            keys: [tokens, kv_heads, key_dim], float32, float16 or bfloat16; all finite.
            values: [tokens, kv_heads, value_dim], as keys.
            positions: [tokens] rotary positions; None: the token indices.
            token_ids: [tokens] of 32 bits, kept for you and returned by `read`.
            dtype: what arrays of uint16 hold the bits of.
            stream: of CUDA tensors: a number, or an object with `cuda_stream` or `ptr`; None: PyTorch's current stream
                for its tensors, else none.

        Raises:
            InvalidArgument: also for a number that is not finite or beyond the stored type's range.
            Busy: another call writes to this memory.
        """
        args = new_struct("mneme_memory_append_args")
        key_tensor = _tensors.tensor_of("keys", keys, bits=dtype)
        address = _tensors.stream_of(stream, key_tensor)
        value_tensor = _tensors.tensor_of("values", values, bits=dtype, stream=address)
        args.layer = layer
        args.keys, args.values = key_tensor.pointer, value_tensor.pointer
        keep = []
        for name, given, number in (("positions", positions, np.int64), ("token_ids", token_ids, np.int32)):
            if given is not None:
                keep.append(integers(name, given, key_tensor.shape[0], number))
                setattr(args, name, keep[-1])
        if address is not None:
            keep.append(_tensors.stream_pointer(address))
            args.stream = keep[-1]
        check(lib.mneme_memory_append(self._pointer(), args))

    def commit(self, durability: Durability = Durability.BUFFERED) -> int:
        """Makes every whole token durable, in all layers or in none; other tokens stay pending.

        `mneme.BUFFERED` survives the death of the process, `mneme.SYNCED` a loss of power.
        Returns: the index of the first token that is not durable.
        """
        durable = ffi.new("int64_t*")
        check(lib.mneme_memory_commit(self._pointer(), int(durability), durable))
        return int(durable[0])

    def truncate(self, tokens: int) -> None:
        """Forgets the tokens from index `tokens` on; 0 empties the memory. Durable with the next commit."""
        check(lib.mneme_memory_truncate(self._pointer(), tokens))

    def evict(self, *, keep: int) -> None:
        """Evicts the oldest tokens that are not pinned until at most `keep` are held, pinned ones included. Commits."""
        check(lib.mneme_memory_evict(self._pointer(), keep))

    def maintain(self, *, progress: Progress = None) -> None:
        """Seals, merges and indexes what is due, now. Commits. Progress is in rows."""
        with reporting(progress, f"maintain {self._name}", "rows") as (callback, context):
            check(lib.mneme_memory_maintain(self._pointer(), callback, context))

    def fork(self, *, name: str, at: int | None = None) -> Memory:
        """Creates a memory that starts as this one's first `at` tokens and shares their rows; None: all whole tokens.

        Commits whole tokens of this memory. Raises AlreadyExists where the store has a memory of this name.
        """
        out = ffi.new("mneme_memory**")
        at_token = self.info().next_token if at is None else at
        check(lib.mneme_memory_fork(self._pointer(), at_token, encode("name", name), out))
        return Memory(self._store, name, out[0])

    @property
    def attachments(self) -> Attachments:
        """Bytes of the host's own that are kept with the memory under names: a mapping."""
        return Attachments(self._pointer)

    # ---------------------------------------------------------------------------------------------- reading

    def snapshot(self) -> Snapshot:
        """Fixes what calls with it see: the layers of a step, while another thread appends."""
        return Snapshot(self)

    def read(self, *, layer: int, begin: int = 0, end: int | None = None,
             want: Collection[Column] = COLUMNS) -> Rows:
        """Copies the stored rows of tokens `begin` to `end` of one layer out; end None: the last whole token.

        Raises OutOfRange for tokens that are evicted or not there.
        """
        stored = self.card.layer(layer)
        args = new_struct("mneme_memory_read_args")
        last = self.info().next_token if end is None else end
        args.layer, args.begin, args.tokens = layer, begin, last - begin
        tokens = max(0, last - begin)
        for name in want:
            if name not in COLUMNS:
                raise InvalidArgument(f"want: expected names of {COLUMNS}, got {name!r}")
        keys = values = positions = token_ids = None
        keep: list[Any] = []
        if "keys" in want:
            keys = np.empty((tokens, stored.kv_heads, stored.key_dim), np.float32)
            keep.append(_tensors.tensor_of("keys", keys))
            args.keys = keep[-1].pointer
        if "values" in want:
            values = np.empty((tokens, stored.kv_heads, stored.value_dim), np.float32)
            keep.append(_tensors.tensor_of("values", values))
            args.values = keep[-1].pointer
        if "positions" in want:
            positions, pointer = new_integers((tokens,))
            keep.append(pointer)
            args.positions = pointer
        if "token_ids" in want:
            token_ids = np.empty(tokens, np.int32)
            keep.append(ffi.from_buffer("int32_t[]", token_ids))
            args.token_ids = keep[-1]
        check(lib.mneme_memory_read(self._pointer(), args))
        return Rows(keys, values, positions, token_ids)

    def attend(
        self, *, layer: int, query: Any, memory_query: Any = None, query_positions: Integers | None = None,
        query_local_positions: Integers | None = None, local_keys: Any = None, local_values: Any = None,
        mask: Mask = "causal", mask_window: int = 0, mask_offset: int | None = None, snapshot: Snapshot | None = None,
        memory_begin: int | None = None, memory_end: int | None = None, position_policy: PositionPolicy = "as_stored",
        normalise_query: bool = False, fusion: Fusion = "joint", top_k: int | Integers = 32,
        distance: PerHead | None = None, memory_bias: PerHead | None = None, decay: PerHead | None = None,
        decay_beyond: float = 1.0, scale: PerHead | None = None, gate: PerHead | None = None, out: Any = None,
        want: Collection[Detail] = DETAILS, dtype: Literal["bf16", "f16"] | None = None, stream: Any = None,
        differentiable: bool = False,
    ) -> Attention:
        """Attends to the best rows of this memory and to a local window.

        A host that appends rows while it still holds them in its local window gives `memory_end`, the index of the
        first local token; otherwise these rows count twice. docs/concepts.md explains the words.

        Args:
            layer: the model's number of the layer.
            query: [tokens, q_heads, key_dim], float32, float16 or bfloat16, rotated as the local keys are.
            memory_query: the same, for the memory's keys (unrotated for unrotated keys); None: `query`.
            query_positions: [tokens] true positions, in token indices of the memory; None: behind what is visible.
            query_local_positions: [tokens], of "window_start" alone.
            local_keys, local_values: [local tokens, kv_heads, key_dim or value_dim]; None: no local window.
            mask: which local rows a query sees: "causal", "sliding_window", "none" (all), or bool
                [tokens, local tokens], True where it is seen.
            mask_window: tokens, of "sliding_window".
            mask_offset: query i sees local rows j <= i + mask_offset; None: the queries are the newest local rows.
            snapshot: of this memory; None: the memory as it is now.
            memory_begin, memory_end: token indices that are visible; None: all that the layer has.
            position_policy: where retrieved rows stand: "as_stored", "fixed_distance", "window_start", "clamped".
            normalise_query: L2-normalise the memory query.
            fusion: "joint", "gated", "memory_only", "local_only".
            top_k: rows to retrieve, for all query heads or for each; 0: the head has no memory.
            distance, memory_bias, decay, scale, gate: for all query heads or for each; None: 0, and the card's scale.
            decay_beyond: tokens, 1 or more.
            out: [tokens, q_heads, value_dim], written to; None: a new array of the query's kind and type.
            want: what to report beside the output; () is fastest.
            dtype: what arrays of uint16 hold the bits of, "bf16" or "f16".
            stream: of CUDA tensors, as of `append`.
            differentiable: the result's `backward` can be called, and it keeps the inputs.

        >>> card = Card("tiny", "sha256:…", [Layer(0, q_heads=2, kv_heads=1, key_dim=64)])
        >>> with mneme.open(folder) as store, store.create("chat", card) as memory:
        ...     rows = np.eye(4, 64, dtype=np.float32)[:, None, :]
        ...     memory.append(layer=0, keys=rows, values=rows)
        ...     query = np.zeros((1, 2, 64), np.float32)
        ...     query[0, 0, 3], query[0, 1, 1] = 800, 800
        ...     result = memory.attend(layer=0, query=query, top_k=1)
        >>> result.tokens.ravel().tolist()
        [3, 1]
        """
        return _attend.attend(
            [self], layer=layer, query=query, memory_query=memory_query, query_positions=query_positions,
            query_local_positions=query_local_positions, local_keys=local_keys, local_values=local_values, mask=mask,
            mask_window=mask_window, mask_offsets=None if mask_offset is None else [mask_offset],
            snapshots=None if snapshot is None else [snapshot],
            memory_begin=None if memory_begin is None else [memory_begin],
            memory_end=None if memory_end is None else [memory_end], position_policy=position_policy,
            normalise_query=normalise_query, fusion=fusion, top_k=top_k, distance=distance, memory_bias=memory_bias,
            decay=decay, decay_beyond=decay_beyond, scale=scale, gate=gate, out=out, want=want, dtype=dtype,
            stream=stream, differentiable=differentiable,
        )

    def search(
        self, *, layer: int, query: Any, query_positions: Integers | None = None,
        query_local_positions: Integers | None = None, snapshot: Snapshot | None = None,
        memory_begin: int | None = None, memory_end: int | None = None, position_policy: PositionPolicy = "as_stored",
        normalise_query: bool = False, top_k: int = 32, distance: PerHead | None = None, decay: PerHead | None = None,
        decay_beyond: float = 1.0, scale: PerHead | None = None,
        want: Collection[SearchDetail] = DEFAULT_SEARCH_DETAILS, dtype: Literal["bf16", "f16"] | None = None,
    ) -> Found:
        """Finds each query head's best rows. Arguments as of `attend`.

        `query` is [tokens, q_heads, key_dim], rotated if the memory's keys are. `want` may also have "keys" and
        "values": the rows themselves.
        """
        return _attend.search(
            [self], layer=layer, query=query, query_positions=query_positions,
            query_local_positions=query_local_positions, snapshots=None if snapshot is None else [snapshot],
            memory_begin=None if memory_begin is None else [memory_begin],
            memory_end=None if memory_end is None else [memory_end], position_policy=position_policy,
            normalise_query=normalise_query, top_k=top_k, distance=distance, decay=decay, decay_beyond=decay_beyond,
            scale=scale, want=want, dtype=dtype,
        )

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False, max_file_bytes: Size = 0,
               progress: Progress = None) -> None:
        """Writes the memory into a file in the format safetensors; docs/exchange.md describes it. Progress is in bytes.

        Args:
            path: the file, which appears when it is complete; its name ends in ".safetensors".
            overwrite: replace a file that is there; otherwise AlreadyExists is raised.
            max_file_bytes: tensors beyond it go into another file; 0: 5 GB.
            progress: True for a bar, or a function of (done, total).
        """
        args = new_struct("mneme_memory_export_args")
        encoded = ffi.new("char[]", encode("path", os.fsdecode(path)))
        args.path = encoded
        args.overwrite = int(overwrite)
        args.max_file_bytes = bytes_of("max_file_bytes", max_file_bytes)
        with reporting(progress, f"export {self._name}", "B") as (args.progress, args.context):
            check(lib.mneme_memory_export(self._pointer(), args))

    # ---------------------------------------------------------------------------------------------- closing

    def close(self) -> None:
        """Closes the memory. Tokens that were not committed are lost. Does nothing the second time.

        Raises Busy while another call of it is running.
        """
        self._store_handle.give_back(self._handle)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _pointer(self) -> Any:
        return self._handle.get()

    def _layer(self, number: int) -> Layer | None:
        """The card's layer, None where it has none of this number."""
        return next((layer for layer in self.card.layers if layer.layer == number), None)
