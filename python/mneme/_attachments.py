# SPDX-License-Identifier: Apache-2.0
"""Attachments: bytes of the host's own that a memory keeps under names."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from mneme._card import encode
from mneme._errors import InvalidArgument, NotFound, check
from mneme._native import NULL, ffi, lib


@dataclasses.dataclass(frozen=True)
class ListedAttachment:
    """One attachment as `Attachments.list` shows it, without reading it."""

    name: str
    size: int
    """in bytes"""
    tokens: int
    """the first tokens of the memory that it describes; 0: it depends on none"""


def _visit(context: Any, name: Any, size: int, tokens: int) -> int:
    take: Callable[[ListedAttachment], None] = ffi.from_handle(context)
    take(ListedAttachment(ffi.string(name).decode("utf-8", "surrogateescape"), size, tokens))
    return 0


_VISIT = ffi.callback("int(void*, const char*, size_t, int64_t)", _visit, error=1)


class Attachments(MutableMapping[str, bytes]):
    """A memory's attachments: a mapping of names to bytes, which are durable with the memory's next commit.

    Made by `Memory.attachments`. Names have 1 to 255 bytes of UTF-8. Forks share attachments. Reading from any thread;
    changing one at a time with the calls that change the memory, a second one raises `Busy`.

    >>> card = Card("tiny", "sha256:…", [Layer(0, q_heads=2, kv_heads=1, key_dim=64)])
    >>> with mneme.open(folder) as store, store.create("chat", card) as memory:
    ...     memory.attachments["settings"] = b'{"top_k": 32}'
    ...     dict(memory.attachments)
    {'settings': b'{"top_k": 32}'}
    """

    def __init__(self, pointer: Callable[[], Any]) -> None:
        """Use `Memory.attachments`."""
        self._pointer = pointer

    def set(self, name: str, data: Any, *, tokens: int = 0) -> None:
        """Keeps a copy of `data` in place of what the name had before.

        Args:
            name: 1 to 255 bytes of UTF-8.
            data: bytes, or any contiguous buffer; at most 1 GiB.
            tokens: `data` describes the memory's first `tokens` tokens. A truncation below that removes the attachment,
                and a fork at fewer tokens does not get it. 0: it depends on none.

        Raises ResourceExhausted beyond 1,024 attachments.
        """
        if isinstance(data, str):
            raise InvalidArgument("data: expected bytes, got str")
        try:
            buffer = ffi.from_buffer(data)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidArgument(f"data: expected bytes, got {type(data).__name__}: {error}") from None
        # Without a byte's address the library removes the attachment.
        pointer = buffer if len(buffer) else ffi.new("char[1]")
        check(lib.mneme_memory_set_attachment(self._pointer(), encode("name", name), pointer, len(buffer), tokens))

    def list(self) -> tuple[ListedAttachment, ...]:
        """All attachments with their sizes, in order of their names. Reads none."""
        found: list[ListedAttachment] = []
        context = ffi.new_handle(found.append)
        check(lib.mneme_memory_list_attachments(self._pointer(), _VISIT, context))
        return tuple(found)

    def __getitem__(self, name: str) -> bytes:
        encoded = encode("name", name)
        size = ffi.new("size_t*")
        check(lib.mneme_memory_get_attachment(self._pointer(), encoded, NULL, 0, size, NULL))
        while True:
            capacity = int(size[0])
            data = bytearray(capacity)
            status = lib.mneme_memory_get_attachment(
                self._pointer(), encoded, ffi.from_buffer(data) if capacity else ffi.new("char[1]"), capacity, size,
                NULL,
            )
            # Another thread may have set a larger one since its size was asked for.
            if status != InvalidArgument.status or size[0] <= capacity:
                check(status)
                return bytes(data[: size[0]])

    def __setitem__(self, name: str, data: bytes) -> None:
        self.set(name, data)

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise NotFound(f"name: the memory has no attachment {name!r}")
        check(lib.mneme_memory_set_attachment(self._pointer(), encode("name", name), NULL, 0, 0))

    def __iter__(self) -> Iterator[str]:
        return iter([attachment.name for attachment in self.list()])

    def __len__(self) -> int:
        return len(self.list())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(attachment.name == name for attachment in self.list())

    def __repr__(self) -> str:
        return f"<mneme.Attachments of {len(self)}>"
