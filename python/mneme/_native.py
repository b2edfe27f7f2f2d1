# SPDX-License-Identifier: Apache-2.0
"""Loads libmneme. Every call through `lib` gives up the GIL while it runs."""
from __future__ import annotations

import os
from typing import Any

from mneme._abi import ffi as _ffi

ffi: Any = _ffi

PACKAGE = os.path.dirname(os.path.abspath(__file__))


def _path() -> str:
    """The library: MNEME_LIBRARY if it is set, else the package's own, else the one that the system finds."""
    given = os.environ.get("MNEME_LIBRARY")
    if given:
        return given
    packaged = os.path.join(PACKAGE, "lib", "libmneme.so.0")
    return packaged if os.path.exists(packaged) else "libmneme.so.0"


def _load() -> Any:
    path = _path()
    try:
        loaded = ffi.dlopen(path)
    except OSError as error:
        raise ImportError(f"mneme: cannot load {path}: {error}") from error
    expected, found = loaded.MNEME_ABI_VERSION, loaded.mneme_abi_version()
    if found != expected:
        raise ImportError(f"mneme: {path} has ABI version {found}; this package was built for {expected}")
    return loaded


lib: Any = _load()
NULL: Any = ffi.NULL
_kinds: dict[str, tuple[Any, int]] = {}  # pointer type and size of structs that were made


def new_struct(name: str) -> Any:
    """A struct of the ABI that starts with its size; all other fields are zero, their default."""
    kind = _kinds.get(name)
    if kind is None:
        kind = _kinds[name] = (ffi.typeof(f"{name}*"), ffi.sizeof(name))
    struct = ffi.new(kind[0])
    struct.struct_size = kind[1]
    return struct


def text(pointer: Any) -> str:
    """A C string of the library as str; bytes that are not UTF-8 become surrogates."""
    result: bytes = ffi.string(pointer)
    return result.decode("utf-8", "surrogateescape")
