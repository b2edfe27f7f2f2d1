# SPDX-License-Identifier: Apache-2.0
"""Stores: folders of memories."""
from __future__ import annotations

import contextlib
import dataclasses
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from mneme._backup import Backup, Path, backup_of, folder_of
from mneme._card import Card, card_handle, encode
from mneme._errors import NotFound, check
from mneme._graph import Graph
from mneme._handles import LOG_MESSAGE, StoreHandle, finalize_store
from mneme._memory import Memory, info_name
from mneme._native import NULL, ffi, lib, new_struct
from mneme._numbers import DTYPES, MODES, DType, Mode, Size, bytes_of, number_of
from mneme._progress import Progress, reporting

if TYPE_CHECKING:
    from types import TracebackType

_Default = TypeVar("_Default")


@dataclasses.dataclass(frozen=True)
class StoreStats:
    """Sizes and counters of a store. Counters start at 0 when it is opened.

    The fields are those of `mneme_store_stats`. A pair is one query head and one row.
    """

    memories: int
    open_memories: int
    disk_bytes: int
    ram_bytes: int
    appended_bytes: int
    written_bytes: int
    indexes_built: int
    indexes_loaded: int
    indexes_rebuilt: int
    orphans_collected: int
    code_scanned_pairs: int
    key_scanned_pairs: int
    reranked_pairs: int
    rescanned_pairs: int
    codes_loaded: int
    codes_rebuilt: int
    rows_read: int
    device_bytes: int
    device_searched_sequences: int
    device_fallback_sequences: int
    device_copied_rows: int
    host_staged_calls: int


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `Store.verify` found. The log names what is damaged."""

    memories: int
    damaged_memories: int
    """whose manifest or rows are damaged"""
    damaged_values: int
    """chunks, log records and table files that fail their checksum or are missing"""
    damaged_indexes: int
    """indices and codes of keys; they are rebuilt when they are needed"""
    bytes_read: int

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not (self.damaged_memories or self.damaged_values or self.damaged_indexes)


@dataclasses.dataclass(frozen=True)
class ListedMemory:
    """One memory of a store as `Store.list` shows it, without opening it."""

    name: str
    tokens: int
    """committed tokens that are held"""
    bytes: int
    """of their rows"""


def _visit(context: Any, name: Any, tokens: int, size: int) -> int:
    visitor: Callable[[bytes, int, int], bool] = ffi.from_handle(context)
    return 0 if visitor(ffi.string(name), tokens, size) else 1


def _take_text(context: Any, data: Any, size: int) -> None:
    take: Callable[[str], None] = ffi.from_handle(context)
    take(bytes(ffi.buffer(data, size)).decode())


_TAKE_TEXT = ffi.callback("void(*)(void*, const char*, size_t)", _take_text)
_VISIT = ffi.callback("int(void*, const char*, int64_t, int64_t)", _visit, error=1)


def open(
    path: Path, *, mode: Mode = "rw", must_exist: bool = False, threads: int = 1, background: bool = False,
    ram_budget: Size = 0, disk_budget: Size = 0, ignore_index_blobs: bool = False, device: int = 0,
    device_budget: Size = 0, measure_latency: bool = False,
) -> Store:
    """Opens a store, a folder of memories, or creates it.

    Args:
        path: the folder.
        mode: "rw": one process at a time; "r": the store as it is now, also beside a writer; "follow": read-only, and
            each opening of a memory sees what the writer has committed by then.
        must_exist: raise NotFound where there is no store, instead of creating it.
        threads: the engine works on this many, the calling one included.
        background: let one thread of the engine build indices; otherwise `Memory.commit` does.
        ram_budget: bytes for sealed rows in RAM; other rows are read from disk, with the same results; 0: no bound.
        disk_budget: bytes beyond which `Memory.commit` raises ResourceExhausted; 0: no bound.
        ignore_index_blobs: build stored indices anew instead of reading them, for folders from others.
        device, device_budget: a CUDA device and its bytes for copies of memories; 0 bytes: none.
        measure_latency: `Store.metrics` tells how long calls took, at a cost of about 0.1 µs a call.

    Budgets are numbers or text such as "512 MiB" or "4GB". Warnings and reports of repairs go to the logger "mneme".

    Raises:
        FailedPrecondition: another writer has the folder open.
        NotFound, PermissionDenied, DataLoss: the folder cannot be opened.

    >>> with mneme.open(folder) as store:
    ...     len(store)
    0
    """
    options = new_struct("mneme_store_options")
    options.mode = number_of("mode", mode, MODES)
    options.must_exist = int(must_exist)
    options.threads = threads
    options.background = int(background)
    options.ignore_index_blobs = int(ignore_index_blobs)
    options.ram_budget_bytes = bytes_of("ram_budget", ram_budget)
    options.disk_budget_bytes = bytes_of("disk_budget", disk_budget)
    options.device_ordinal = device
    options.device_budget_bytes = bytes_of("device_budget", device_budget)
    options.measure_latency = int(measure_latency)
    options.log = LOG_MESSAGE
    out = ffi.new("mneme_store**")
    check(lib.mneme_store_open(encode("path", os.fsdecode(path)), options, out))
    return Store(os.fspath(path), mode, out[0])


class Store:
    """An open store: a mapping of names to memories. Made by `mneme.open`.

    `store[name]` opens a memory, `name in store`, `len(store)` and `list(store)` look at names alone, and
    `del store[name]` drops a memory for good. A context manager, which closes it at its end.

    Threads: any. Processes: a child of `os.fork` cannot use a store that was opened before; every call raises
    FailedPrecondition there and the parent loses nothing. Start such children first, or with "spawn".

    >>> card = Card("tiny", "sha256:…", [Layer(0, q_heads=2, kv_heads=1, key_dim=64)])
    >>> with mneme.open(folder) as store:
    ...     memory = store.get("user-42", card) or store.create("user-42", card, pinned=16)
    ...     list(store), "user-42" in store, "user-43" in store
    (['user-42'], True, False)
    """

    def __init__(self, path: str, mode: Mode, pointer: Any) -> None:
        """Use `mneme.open`."""
        self._path = path
        self._mode = mode
        self._handle = StoreHandle(pointer)
        self._finalizer = weakref.finalize(self, finalize_store, self._handle)

    @property
    def path(self) -> str:
        """The folder, as it was given."""
        return self._path

    @property
    def mode(self) -> Mode:
        """What it is open for."""
        return self._mode

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self._handle.pointer == NULL)

    def __repr__(self) -> str:
        if self.closed:
            return f"<mneme.Store {self._path!r}, closed>"
        return f"<mneme.Store {self._path!r}, mode {self._mode!r}: {len(self)} memories>"

    # ---------------------------------------------------------------------------------------------- memories

    def create(
        self, name: str, card: Card, *, dtype: DType = "f16", keys_rotated: bool = False, normalise_keys: bool = False,
        max_tokens: int = 0, max_bytes: Size = 0, pinned: int = 0, segment_tokens: int = 0, index: str = "auto",
    ) -> Memory:
        """Creates a memory, which is durable when this returns.

        Args:
            name: 1 to 255 bytes of UTF-8.
            card: the model's.
            dtype: of stored keys and values.
            keys_rotated: rotated keys will be appended; only the position policy "as_stored" can be used then.
            normalise_keys: appended keys become x / sqrt(|x|² + 1e-6), as in Memorizing Transformers.
            max_tokens, max_bytes: beyond these the oldest tokens are evicted as new ones come; 0: no bound.
            pinned: the first tokens, which are never evicted; 16 keep a model's attention sinks.
            segment_tokens: a tail of this many is sealed, a multiple of 256; 0: 4096.
            index: "auto" is the exact scan; docs/concepts.md has the others.

        Raises AlreadyExists where the store has a memory of this name.
        """
        options = new_struct("mneme_memory_options")
        options.stored_dtype = number_of("dtype", dtype, DTYPES)
        options.keys_rotated = int(keys_rotated)
        options.normalise_keys = int(normalise_keys)
        options.max_tokens = max_tokens
        options.max_bytes = bytes_of("max_bytes", max_bytes)
        options.pinned_tokens = pinned
        options.segment_tokens = segment_tokens
        index_text = ffi.new("char[]", encode("index", index))
        options.index = index_text
        out = ffi.new("mneme_memory**")
        with card_handle(card) as handle:
            check(lib.mneme_memory_create(self._handle.get(), encode("name", name), handle, options, out))
        return Memory(self, name, out[0])

    def open(self, name: str, card: Card | None = None) -> Memory:
        """Opens a memory; with a card only if it is the memory's own.

        Raises NotFound without such a memory, and FailedPrecondition for another model's.
        """
        out = ffi.new("mneme_memory**")
        encoded = encode("name", name)
        if card is None:
            check(lib.mneme_memory_open(self._handle.get(), encoded, NULL, out))
        else:
            with card_handle(card) as handle:
                check(lib.mneme_memory_open(self._handle.get(), encoded, handle, out))
        return Memory(self, name, out[0])

    @overload
    def get(self, name: str, card: Card | None = None) -> Memory | None: ...
    @overload
    def get(self, name: str, card: Card | None = None, *, default: _Default) -> Memory | _Default: ...
    def get(self, name: str, card: Card | None = None, *, default: Any = None) -> Any:
        """Opens a memory as `open` does; `default` where there is none."""
        try:
            return self.open(name, card)
        except NotFound:
            return default

    def import_memory(self, path: Path, *, name: str | None = None, card: Card | None = None,
                      progress: Progress = None) -> Memory:
        """Creates a memory from a file of `Memory.export`, wholly or not at all. Progress is in bytes.

        Args:
            path: the file; of several, their common name or the index file.
            name: of the new memory; None: that of the exported one.
            card: the model's, which must equal the file's; None: no check.
            progress: True for a bar, or a function of (done, total).

        Raises NotFound without such a file, InvalidArgument for one that is no exported memory, DataLoss for a damaged
        one, AlreadyExists where the store has a memory of this name.
        """
        args = new_struct("mneme_memory_import_args")
        keep = [ffi.new("char[]", encode("path", os.fsdecode(path)))]
        args.path = keep[0]
        if name is not None:
            keep.append(ffi.new("char[]", encode("name", name)))
            args.name = keep[1]
        out = ffi.new("mneme_memory**")
        with contextlib.ExitStack() as stack:
            if card is not None:
                args.expected = stack.enter_context(card_handle(card))
            args.progress, args.context = stack.enter_context(reporting(progress, "import", "B"))
            check(lib.mneme_memory_import(self._handle.get(), args, out))
        return Memory(self, info_name(out[0]) if name is None else name, out[0])

    def drop(self, *names: str) -> None:
        """Deletes memories for good, all or none. Raises FailedPrecondition where one of them is open."""
        encoded = [ffi.new("char[]", encode("names", name)) for name in names]
        check(lib.mneme_memory_drop_many(self._handle.get(), ffi.new("char*[]", encoded), len(encoded)))

    def list(self) -> tuple[ListedMemory, ...]:
        """All memories with their committed sizes, in order of their names. Opens none."""
        found: list[ListedMemory] = []

        def visit(name: bytes, tokens: int, size: int) -> bool:
            found.append(ListedMemory(name.decode("utf-8", "surrogateescape"), tokens, size))
            return True

        self._visit(visit)
        return tuple(found)

    def _visit(self, visitor: Callable[[bytes, int, int], bool]) -> None:
        context = ffi.new_handle(visitor)
        check(lib.mneme_store_list(self._handle.get(), _VISIT, context))

    def keys(self) -> Iterator[str]:
        """The names, in order."""
        return iter(self)

    def values(self) -> Iterator[Memory]:
        """The memories, each opened when it comes."""
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, Memory]]:
        """Names and memories, each opened when it comes."""
        return ((name, self[name]) for name in self)

    def __getitem__(self, name: str) -> Memory:
        return self.open(name)

    def __delitem__(self, name: str) -> None:
        check(lib.mneme_memory_drop(self._handle.get(), encode("name", name)))

    def __iter__(self) -> Iterator[str]:
        return iter([memory.name for memory in self.list()])

    def __len__(self) -> int:
        return len(self.list())

    def __bool__(self) -> bool:
        return True  # also of an empty store

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        sought = name.encode("utf-8", "surrogateescape")
        found = []

        def visit(one: bytes, _tokens: int, _size: int) -> bool:
            if one == sought:
                found.append(one)
            return one < sought  # they come in order

        self._visit(visit)
        return bool(found)

    # ---------------------------------------------------------------------------------------------- the whole store

    def stats(self) -> StoreStats:
        """Sizes and counters. From any thread, also during other calls."""
        stats = new_struct("mneme_store_stats")
        check(lib.mneme_store_get_stats(self._handle.get(), stats))
        return StoreStats(*(getattr(stats, field.name) for field in dataclasses.fields(StoreStats)))

    def metrics(self) -> str:
        """The store's sizes, counters and, with `measure_latency`, latencies in Prometheus' text format 0.0.4.

        From any thread, also during other calls. docs/integration.md describes the metrics.
        """
        found: list[str] = []
        context = ffi.new_handle(found.append)
        check(lib.mneme_store_write_metrics(self._handle.get(), _TAKE_TEXT, context))
        return "".join(found)

    def verify(self, *, progress: Progress = None) -> VerifyReport:
        """Checks everything that is committed against its checksums. Progress is in bytes.

        Damage does not raise: the report counts it and the log names it.
        """
        report = new_struct("mneme_store_verify_report")
        with reporting(progress, "verify", "B") as (callback, context):
            check(lib.mneme_store_verify(self._handle.get(), callback, context, report))
        return VerifyReport(*(getattr(report, field.name) for field in dataclasses.fields(VerifyReport)))

    def backup(self, folder: Path, *, keep: int = 0, progress: Progress = None) -> Backup:
        """Backs up what is committed; other threads may go on committing. Progress is in bytes.

        Files that an earlier backup in the folder has are not copied again. `mneme.restore` makes a store of one.

        Args:
            folder: of backups of this store alone, outside of it; made where it is missing.
            keep: the newest backups that stay, this one included; older ones are deleted; 0: all.
            progress: True shows a bar; a function gets (done, total).

        Raises FailedPrecondition where the store is open for reading only.
        """
        args = new_struct("mneme_store_backup_args")
        info = new_struct("mneme_backup_info")
        held = folder_of("folder", folder)
        args.folder = held
        args.keep = keep
        with reporting(progress, "backup", "B") as (args.progress, args.context):
            check(lib.mneme_store_backup(self._handle.get(), args, info))
        return backup_of(info)

    def compact(self) -> None:
        """Writes the store's files anew, so that nothing of what was dropped can be read in them."""
        check(lib.mneme_store_compact(self._handle.get()))

    def graph(self) -> Graph:
        """A graph for calls of `attend` that are captured. Raises FailedPrecondition for a store without a device."""
        return Graph(self)

    def close(self) -> None:
        """Closes the store and what of it is open; tokens that were not committed are lost.

        Does nothing the second time. Raises Busy while another call of it is running.
        """
        self._handle.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


