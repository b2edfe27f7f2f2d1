# SPDX-License-Identifier: Apache-2.0
"""A class of exception for each status of the library."""
from __future__ import annotations

import enum
import re

from mneme._native import lib, text


class Status(enum.IntEnum):
    """How a call of the library ended. Numbered like the canonical codes of gRPC."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15

    @property
    def transient(self) -> bool:
        """Whether the same call may work later, or with more room.

        >>> Status.ABORTED.transient, Status.INVALID_ARGUMENT.transient
        (True, False)
        """
        return bool(lib.mneme_status_classify(int(self)) == lib.MNEME_CLASS_TRANSIENT)


class Error(Exception):
    """What a call of mneme raises. The text names the argument, what was expected and what came."""

    status: Status = Status.INTERNAL

    @property
    def transient(self) -> bool:
        """Whether the same call may work later, or with more room."""
        return self.status.transient

    def __str__(self) -> str:
        # KeyError would show the text in quotes.
        return Exception.__str__(self) if len(self.args) != 1 else str(self.args[0])


class Cancelled(Error):
    """A progress callback returned False. What was done by then stays and is consistent."""

    status = Status.CANCELLED


class InvalidArgument(Error, ValueError):
    """An argument is wrong in itself, or does not fit the others."""

    status = Status.INVALID_ARGUMENT


class NotFound(Error, KeyError):
    """There is no store, memory or attachment of this name."""

    status = Status.NOT_FOUND


class AlreadyExists(Error, FileExistsError):
    """There is a memory of this name."""

    status = Status.ALREADY_EXISTS


class PermissionDenied(Error, PermissionError):
    """No right to a file, or a read-only file system."""

    status = Status.PERMISSION_DENIED


class ResourceExhausted(Error, OSError):
    """A budget, the disk or RAM is full; too many files are open."""

    status = Status.RESOURCE_EXHAUSTED


class FailedPrecondition(Error, RuntimeError):
    """The arguments are right and the state is not: another model's card, a store that another writer has open."""

    status = Status.FAILED_PRECONDITION


class Busy(Error, RuntimeError):
    """Another call of the same memory is running."""

    status = Status.ABORTED


class OutOfRange(Error, IndexError):
    """Tokens that are evicted or not there."""

    status = Status.OUT_OF_RANGE


class Unimplemented(Error, NotImplementedError):
    """Not in this build of the library."""

    status = Status.UNIMPLEMENTED


class Internal(Error, RuntimeError):
    """A bug in mneme or below it."""

    status = Status.INTERNAL


class Unavailable(Error, OSError):
    """Input or output failed, or the device did; it may pass."""

    status = Status.UNAVAILABLE


class DataLoss(Error, OSError):
    """Stored data are damaged. They are never served."""

    status = Status.DATA_LOSS


CLASSES: dict[int, type[Error]] = {
    int(cls.status): cls
    for cls in (
        Cancelled, InvalidArgument, NotFound, AlreadyExists, PermissionDenied, ResourceExhausted, FailedPrecondition,
        Busy, OutOfRange, Unimplemented, Internal, Unavailable, DataLoss,
    )
}

# The library names a field of a C struct; a caller of the package gave it as an argument.
_STRUCT_PREFIX = re.compile(r"\b(?:args|options)\.(?=[a-z])")


def error_of(status: int) -> Error:
    """The exception for the status that the last call of this thread returned."""
    message = _STRUCT_PREFIX.sub("", text(lib.mneme_last_error()))
    return CLASSES.get(status, Internal)(message)


def check(status: int) -> None:
    """Raises unless `status` is MNEME_OK. Call it directly after the library's function, on the same thread."""
    if status != 0:
        raise error_of(status)
