# SPDX-License-Identifier: Apache-2.0
"""Calls of attend that are captured in a CUDA graph."""
from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mneme._arrays import Integers, integers
from mneme._errors import InvalidArgument, check
from mneme._handles import Handle, finalize_child
from mneme._native import NULL, ffi, lib, new_struct
from mneme._tensors import stream_pointer

if TYPE_CHECKING:
    from types import TracebackType

    from mneme._memory import Memory
    from mneme._store import Store


class Graph:
    """A step of decoding that is captured into a CUDA graph once and replayed; docs/integration.md has the rules.

    Made by `Store.graph`. Pass it to `attend` with a stream that is being captured and `want=()`; call `update` before
    each replay.
    """

    def __init__(self, store: Store) -> None:
        out = ffi.new("mneme_graph**")
        check(lib.mneme_graph_create(store._handle.get(), out))
        self._store_handle = store._handle
        self._handle: Handle = self._store_handle.adopt("graph", out[0])
        self._finalizer = weakref.finalize(self, finalize_child, self._store_handle, self._handle)
        self._tokens: int | None = None

    def update(self, memories: Sequence[Memory | None], *, memory_begin: Integers | None = None,
               memory_end: Integers | None = None, local_offsets: Integers | None = None,
               query_positions: Integers | None = None, stream: Any = None) -> None:
        """Sets what replays see from now on: the memories as they are now.

        `stream` is that of the replays, as for `attend`, and the host does not wait; None: the call waits, and no
        replay may be under way.
        """
        args = new_struct("mneme_graph_update_args")
        batch = len(memories)
        keep = [ffi.new("mneme_memory*[]", [NULL if memory is None else memory._pointer() for memory in memories])]
        counted = (("memory_begin", memory_begin, batch), ("memory_end", memory_end, batch),
                   ("local_offsets", local_offsets, batch + 1),
                   ("query_positions", query_positions, self._tokens))
        for name, value, count in counted:
            if value is None:
                continue
            if count is None:
                raise InvalidArgument(f"{name}: expected None before a call is captured, got numbers")
            keep.append(integers(name, value, count))
            setattr(args, name, keep[-1])
        if stream is not None:
            address = next((getattr(stream, name) for name in ("cuda_stream", "ptr") if hasattr(stream, name)), stream)
            keep.append(stream_pointer(int(address)))
            args.stream = keep[-1]
        check(lib.mneme_graph_update(self._handle.get(), keep[0], batch, args))

    def release(self) -> None:
        """Gives the graph back, after the last replay. Does nothing the second time."""
        self._store_handle.give_back(self._handle)

    def _pointer(self, tokens: int) -> Any:
        """For a call of attend with this many queries, which is captured."""
        self._tokens = tokens
        return self._handle.get()

    def __enter__(self) -> Graph:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.release()
