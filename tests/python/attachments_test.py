# SPDX-License-Identifier: Apache-2.0
"""Attachments: what a memory keeps of the host's own."""
from __future__ import annotations

import mneme
import numpy as np
import pytest


def test_attachments_are_a_mapping(memory):
    attachments = memory.attachments
    assert len(attachments) == 0
    assert "a" not in attachments
    attachments["ä"] = b"second"
    attachments["a"] = b"\0first\0"
    attachments["empty"] = b""
    assert list(attachments) == ["a", "empty", "ä"]
    assert dict(attachments) == {"a": b"\0first\0", "ä": b"second", "empty": b""}
    assert "a" in attachments
    assert 7 not in attachments
    attachments["a"] = b"another"
    assert attachments["a"] == b"another"
    assert memory.info().attachment_bytes == len(b"another") + len(b"second")
    del attachments["a"]
    assert attachments.get("a") is None
    with pytest.raises(mneme.NotFound, match="a"):
        attachments["a"]
    with pytest.raises(KeyError, match="'a'"):
        del attachments["a"]


def test_any_buffer_can_be_attached(memory):
    numbers = np.arange(5, dtype=np.int32)
    memory.attachments.set("numbers", numbers)
    memory.attachments.set("view", memoryview(b"0123")[1:3])
    assert memory.attachments["numbers"] == numbers.tobytes()
    assert memory.attachments["view"] == b"12"
    for wrong in ("text", 7, numbers[::2]):
        with pytest.raises(mneme.InvalidArgument, match="data"):
            memory.attachments.set("wrong", wrong)
    for name in ("", "n" * 256, "a\0b", 7):
        with pytest.raises(mneme.InvalidArgument, match="name"):
            memory.attachments.set(name, b"x")
    assert list(memory.attachments) == ["numbers", "view"]


def test_an_attachment_ends_with_its_tokens(store, folder, memory):
    memory.attachments.set("at 60", b"state", tokens=60)
    memory.attachments["settings"] = b"{}"
    with pytest.raises(mneme.OutOfRange, match="tokens"):
        memory.attachments.set("beyond", b"x", tokens=101)
    memory.commit()
    store.close()
    with mneme.open(folder) as again:
        memory = again["m"]
        assert memory.attachments.list() == (
            mneme.ListedAttachment("at 60", 5, 60), mneme.ListedAttachment("settings", 2, 0))
        with memory.fork(name="short", at=59) as short:
            assert list(short.attachments) == ["settings"]
        memory.truncate(59)
        assert list(memory.attachments) == ["settings"]


def test_a_closed_memory_has_none(memory):
    attachments = memory.attachments
    memory.close()
    with pytest.raises(mneme.InvalidArgument, match="closed"):
        list(attachments)
