# SPDX-License-Identifier: Apache-2.0
"""The package and mneme.h: every function is bound, every struct is read as C has it."""
from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import re

import mneme
import pytest
from mneme._native import ffi, lib

ROOT = pathlib.Path(os.environ.get("MNEME_SOURCE", pathlib.Path(__file__).parents[2]))
PACKAGE = ROOT / "python" / "mneme"
# Functions that the package does not call, and why.
UNBOUND: dict[str, str] = {
    "mneme_status_name": "mneme.Status has the names",
}
# Fields that no dataclass has, and why.
UNREAD: dict[str, str] = {}


def exported():
    return set((ROOT / "tests" / "capi" / "symbols.txt").read_text().split())


def test_every_function_is_bound():
    sources = "\n".join(path.read_text() for path in PACKAGE.glob("*.py"))
    called = set(re.findall(r"\b(?:_?lib|loaded)\.(mneme_\w+)", sources))
    assert called == exported() - set(UNBOUND)
    for name in exported():
        assert callable(getattr(lib, name))


def test_structs_lie_as_in_c():
    text = (ROOT / "tests" / "abi" / "layout.c").read_text()
    fields = re.findall(r"^FIELD\((\w+), (\w+), (\d+), (\d+)\);", text, re.MULTILINE)
    sizes = re.findall(r"^SIZE\((\w+), (\d+)\);", text, re.MULTILINE)
    constants = re.findall(r"^CONSTANT\((\w+), (\d+)u?\);", text, re.MULTILINE)
    assert len(fields) > 100
    assert len(sizes) > 10
    assert len(constants) > 40
    for struct, field, offset, _ in fields:
        assert ffi.offsetof(struct, field) == int(offset), f"{struct}.{field}"
    for struct, size in sizes:
        assert ffi.sizeof(struct) == int(size), struct
    for name, value in constants:
        assert getattr(lib, name) == int(value), name


@pytest.mark.parametrize(("cls", "struct"), [
    (mneme.StoreStats, "mneme_store_stats"), (mneme.MemoryInfo, "mneme_memory_info"),
    (mneme.VerifyReport, "mneme_store_verify_report"), (mneme.Backup, "mneme_backup_info"),
])
def test_dataclasses_have_the_structs_fields(cls, struct):
    names = [name for name, _ in ffi.typeof(struct).fields]
    assert [field.name for field in dataclasses.fields(cls)] == [name for name in names[1:] if name not in UNREAD]


def test_the_tool_refuses_a_header_that_it_does_not_know():
    spec = importlib.util.spec_from_file_location("make_abi", ROOT / "python" / "tools" / "make_abi.py")
    make_abi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_abi)
    header = (ROOT / "capi" / "include" / "mneme.h").read_text()
    assert make_abi.make(header)
    with pytest.raises(ValueError, match="#ifdef FEATURE"):
        make_abi.make(header + "#ifdef FEATURE\nint x;\n#endif\n")
    with pytest.raises(ValueError, match="MNEME_ABI_VERSION"):
        make_abi.make(header.replace("#define MNEME_ABI_VERSION", "#define OTHER_VERSION"))
