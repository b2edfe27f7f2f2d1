# SPDX-License-Identifier: Apache-2.0
"""Backups of stores."""
from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, Union

from mneme._card import encode
from mneme._errors import check
from mneme._native import ffi, lib, new_struct
from mneme._progress import Progress, reporting

if TYPE_CHECKING:
    from collections.abc import Callable

Path = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Backup:
    """A backup of a store. `Store.backup` makes one, `backups` lists those of a folder."""

    id: int
    """1, 2, … in the order in which they were made"""
    unix_seconds: int
    """when it was made"""
    bytes: int
    """of its files, those included that it shares with other backups"""
    files: int
    copied_bytes: int
    """written for it; known to `Store.backup` alone"""
    damaged: bool
    """a file of it is missing, and only `id` is known"""


def backup_of(info: Any) -> Backup:
    """The struct `mneme_backup_info` as a Backup."""
    return Backup(info.id, info.unix_seconds, info.bytes, info.files, info.copied_bytes, bool(info.damaged))


def _visit(context: Any, info: Any) -> int:
    visitor: Callable[[Any], None] = ffi.from_handle(context)
    visitor(info)
    return 0


_VISIT = ffi.callback("int(void*, const mneme_backup_info*)", _visit, error=1)


def folder_of(name: str, path: Path) -> Any:
    """A path as a call takes it; `name` is the argument."""
    return ffi.new("char[]", encode(name, os.fsdecode(path)))


def backups(folder: Path) -> tuple[Backup, ...]:
    """The backups of a folder, the oldest first. Raises NotFound where there is none."""
    found: list[Backup] = []
    context = ffi.new_handle(lambda info: found.append(backup_of(info)))
    check(lib.mneme_backup_list(folder_of("folder", folder), _VISIT, context))
    return tuple(found)


def verify_backup(folder: Path, *, backup: int = 0, progress: Progress = None) -> None:
    """Reads a backup, the newest by default, against its checksums. Progress is in bytes.

    Raises:
        DataLoss: it is damaged.
        NotFound: there is no such backup.
    """
    with reporting(progress, "verify", "B") as (callback, context):
        check(lib.mneme_backup_verify(folder_of("folder", folder), backup, callback, context))


def restore(folder: Path, path: Path, *, backup: int = 0, progress: Progress = None) -> None:
    """Makes a backup, the newest by default, a store at `path`: all or nothing. Progress is in bytes.

    Args:
        folder: of the backups.
        path: a missing or an empty folder.
        backup: the `id` of a Backup; 0: the newest.
        progress: True shows a bar; a function gets (done, total).

    Raises:
        AlreadyExists: `path` has files.
        DataLoss: the backup is damaged.
        NotFound: there is no such backup.
    """
    args = new_struct("mneme_store_restore_args")
    held = folder_of("folder", folder), folder_of("path", path)
    args.folder, args.path = held
    args.backup = backup
    with reporting(progress, "restore", "B") as (args.progress, args.context):
        check(lib.mneme_store_restore(args))
