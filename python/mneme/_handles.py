# SPDX-License-Identifier: Apache-2.0
"""What the library gave out and gets back: each handle once, children before their store, at the latest at exit."""
from __future__ import annotations

import logging
import threading
from typing import Any

from mneme._errors import InvalidArgument, check
from mneme._native import NULL, ffi, lib, new_struct, text

logger = logging.getLogger("mneme")


def _log_message(_context: Any, _level: int, message: Any) -> None:
    """The log of every store. It runs on any thread, also on the library's own."""
    logger.warning("%s", text(message))


LOG_MESSAGE = ffi.callback("void(void*, mneme_log_level, const char*)", _log_message)


class Handle:
    """A memory, snapshot or graph of a store. `pointer` is NULL once it is given back."""

    __slots__ = ("__weakref__", "kind", "pointer")

    def __init__(self, kind: str, pointer: Any) -> None:
        self.kind = kind
        self.pointer = pointer

    def get(self) -> Any:
        """The pointer. Raises InvalidArgument if it was given back."""
        if self.pointer == NULL:
            raise InvalidArgument(f"{self.kind}: expected one that is open, got one that is closed")
        return self.pointer


def _warn_of_loss(memory: Any) -> None:
    info = new_struct("mneme_memory_info")
    if lib.mneme_memory_get_info(memory, info) != 0 or info.next_token <= info.tokens_durable:
        return
    logger.warning("a memory was closed with %d tokens that were not committed; they are lost",
                   info.next_token - info.tokens_durable)


class StoreHandle:
    """An open store and the handles that hold it open.

    Guarded by `_lock`: `pointer`, `_children` and the pointers in them. The lock is re-entrant, since the garbage
    collector may run a finalizer on the thread that holds it.
    """

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self._children: set[Handle] = set()
        self._lock = threading.RLock()

    def get(self) -> Any:
        if self.pointer == NULL:
            raise InvalidArgument("store: expected one that is open, got one that is closed")
        return self.pointer

    def adopt(self, kind: str, pointer: Any) -> Handle:
        handle = Handle(kind, pointer)
        with self._lock:
            self._children.add(handle)
        return handle

    def give_back(self, handle: Handle) -> None:
        """Closes or releases a child. Nothing happens where that was done before."""
        with self._lock:
            if handle.pointer == NULL:
                return
            if handle.kind == "snapshot":
                lib.mneme_snapshot_release(handle.pointer)
            elif handle.kind == "graph":
                lib.mneme_graph_release(handle.pointer)
            else:
                _warn_of_loss(handle.pointer)
                check(lib.mneme_memory_close(handle.pointer))
            handle.pointer = NULL
            self._children.discard(handle)

    def close(self) -> None:
        """Gives all children back, then closes the store."""
        with self._lock:
            if self.pointer == NULL:
                return
            for handle in list(self._children):
                self.give_back(handle)
            check(lib.mneme_store_close(self.pointer))
            self.pointer = NULL


def finalize_child(store: StoreHandle, handle: Handle) -> None:
    """For weakref.finalize: what cannot be given back now stays open until the store is closed."""
    try:
        store.give_back(handle)
    except Exception as error:
        logger.debug("a %s could not be given back: %s", handle.kind, error)


def finalize_store(store: StoreHandle) -> None:
    try:
        store.close()
    except Exception as error:
        logger.debug("a store could not be closed: %s", error)
