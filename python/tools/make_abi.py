# SPDX-License-Identifier: Apache-2.0
"""Makes the package's module `_abi`, which tells cffi what mneme.h declares.

The build runs it; the module that it writes is plain Python and needs neither the header nor a compiler.

    make_abi.py HEADER OUTPUT
"""
from __future__ import annotations

import os
import re
import sys

import cffi

# What the package adds: DLPack's structs (version 1.0).
ADDITIONS = """
typedef struct { int32_t device_type; int32_t device_id; } DLDevice;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} DLTensor;
typedef struct { DLTensor dl_tensor; void* manager_ctx; void (*deleter)(void* self); } DLManagedTensor;
typedef struct {
  uint32_t major;
  uint32_t minor;
  void* manager_ctx;
  void (*deleter)(void* self);
  uint64_t flags;
  DLTensor dl_tensor;
} DLManagedTensorVersioned;
"""

INLINE_FUNCTION = re.compile(r"^static inline .*?^\}\n", re.MULTILINE | re.DOTALL)
DECLARED = re.compile(r"^MNEME_API [^(]*\b(mneme_\w+)\(", re.MULTILINE)


def strip_comments(text: str) -> str:
    return re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))


def without_cplusplus(text: str) -> str:
    """What a C compiler sees: the parts for C++ and all other preprocessor lines are left out.

    Raises ValueError for a conditional that is not about C++ or the include guard.
    """
    kept: list[str] = []
    conditions: list[bool] = []  # whether each open #if holds for C
    for line in text.replace("\\\n", " ").splitlines():
        words = line.replace("#", "# ", 1).split()
        if not line.lstrip().startswith("#"):
            if all(conditions):
                kept.append(line)
            continue
        directive = words[1]
        if directive == "ifdef" and words[2] == "__cplusplus":
            conditions.append(False)
        elif directive == "ifndef" and words[2].endswith("_H_"):
            conditions.append(True)
        elif directive == "else":
            conditions[-1] = not conditions[-1]
        elif directive == "endif":
            conditions.pop()
        elif directive not in ("include", "define"):
            raise ValueError(f"mneme.h: this tool does not know what to do with: {line.strip()}")
    return "\n".join(kept) + "\n"


def declarations(header: str) -> str:
    """The header's declarations as cffi parses them."""
    text = without_cplusplus(strip_comments(header))
    return INLINE_FUNCTION.sub("", text).replace("MNEME_API ", "")


def constant(header: str, name: str) -> int:
    match = re.search(rf"^#define {name} (\d+)u?$", header, re.MULTILINE)
    if match is None:
        raise ValueError(f"mneme.h: expected a definition of {name}, got none")
    return int(match.group(1))


def make(header: str) -> cffi.FFI:
    ffi = cffi.FFI()
    ffi.cdef(declarations(header) + ADDITIONS)
    ffi.cdef(f"#define MNEME_ABI_VERSION {constant(header, 'MNEME_ABI_VERSION')}")
    for name in DECLARED.findall(header):
        if f"{name}(" not in declarations(header):
            raise ValueError(f"mneme.h: expected the declaration of {name} to be found, got none")
    ffi.set_source("mneme._abi", None)
    return ffi


def main() -> None:
    header_path, output = sys.argv[1:]
    with open(header_path, encoding="utf-8") as file:
        ffi = make(file.read())
    part = f"{output}.part"
    ffi.emit_python_code(part)
    with open(part, encoding="utf-8") as file:
        text = "# SPDX-License-Identifier: Apache-2.0\n" + file.read()
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(part, output)


if __name__ == "__main__":
    main()
