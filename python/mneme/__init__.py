# SPDX-License-Identifier: Apache-2.0
"""mneme: external key/value memory for transformers.

A host appends the keys and values of its attention layers to a memory and attends to the best rows of the whole past
together with its local window. Memories live in a store, which is a folder, and outlive the process.

>>> card = Card("tiny", "sha256:…", [Layer(8, q_heads=4, kv_heads=2, key_dim=64)])
>>> keys = values = np.random.default_rng(1).standard_normal((100, 2, 64), np.float32)
>>> with mneme.open(folder) as store:
...     memory = store.create("user-42", card)
...     memory.append(layer=8, keys=keys, values=values)
...     memory.commit(mneme.SYNCED)
100
>>> with mneme.open(folder) as store:
...     query = keys[[41]].repeat(2, axis=1)
...     store["user-42"].attend(layer=8, query=query, top_k=1).tokens.ravel().tolist()
[41, 41, 41, 41]

Every call of the library gives up the GIL. Handles may be used from any thread; `Memory` says which calls exclude each
other.
"""
from __future__ import annotations

from mneme._attachments import Attachments, ListedAttachment
from mneme._attend import Attention, Found, Merged, attend, merge, search
from mneme._backup import Backup, backups, restore, verify_backup
from mneme._backward import Gradients
from mneme._card import Card, Layer, Rotary
from mneme._errors import (
    AlreadyExists,
    Busy,
    Cancelled,
    DataLoss,
    Error,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Status,
    Unavailable,
    Unimplemented,
)
from mneme._graph import Graph
from mneme._memory import Memory, MemoryInfo, Rows
from mneme._native import lib as _lib
from mneme._native import text as _text
from mneme._numbers import Durability
from mneme._snapshot import Snapshot
from mneme._store import ListedMemory, Store, StoreStats, VerifyReport, open  # noqa: A004

BUFFERED = Durability.BUFFERED
SYNCED = Durability.SYNCED


def library_version() -> str:
    """The library's version and what it is built with."""
    return _text(_lib.mneme_version())


__version__ = library_version().partition(" ")[0]

__all__ = [
    "BUFFERED",
    "SYNCED",
    "AlreadyExists",
    "Attachments",
    "Attention",
    "Backup",
    "Busy",
    "Cancelled",
    "Card",
    "DataLoss",
    "Durability",
    "Error",
    "FailedPrecondition",
    "Found",
    "Gradients",
    "Graph",
    "Internal",
    "InvalidArgument",
    "Layer",
    "ListedAttachment",
    "ListedMemory",
    "Memory",
    "MemoryInfo",
    "Merged",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Rotary",
    "Rows",
    "Snapshot",
    "Status",
    "Store",
    "StoreStats",
    "Unavailable",
    "Unimplemented",
    "VerifyReport",
    "__version__",
    "attend",
    "backups",
    "library_version",
    "merge",
    "open",
    "restore",
    "search",
    "verify_backup",
]
