# SPDX-License-Identifier: Apache-2.0
"""Compares the ABI that mneme.h declares with the stored one, by libabigail.

compatibility_test.py ROOT COMPILER           exit status 77 where abidw and abidiff are missing
compatibility_test.py ROOT COMPILER --write   stores the ABI as it is

libabigail reads types from the debug information of functions that are defined, so every function of the header is
defined here without a body of its own. That the library exports the same functions is capi/SymbolsTest's to check.
"""
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile

DECLARATION = re.compile(r"^MNEME_API ([^;]*);", re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def build(header, compiler, folder):
    """A shared library with the functions of `header`."""
    with open(header, encoding="utf-8") as file:
        declarations = DECLARATION.findall(COMMENT.sub("", file.read()))
    source, library = os.path.join(folder, "functions.c"), os.path.join(folder, "libmneme.so")
    with open(source, "w", encoding="utf-8") as file:
        file.write('#include "mneme.h"\n')
        file.writelines(f"{declaration} {{ __builtin_trap(); }}\n" for declaration in declarations)
    subprocess.run([compiler, "-std=c11", "-g", "-fPIC", "-shared", "-I", os.path.dirname(header), source, "-o", library],
                   check=True)
    return library


def describe(library):
    options = ["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs"]
    text = subprocess.run(["abidw", *options, library], check=True, capture_output=True, text=True).stdout
    return text.replace(f"{os.path.dirname(library)}{os.sep}", "")  # the temporary folder


def skip(reason):
    print(f"skipped: {reason}")
    return 77


def main(root, compiler, write):
    here = os.path.join(root, "tests", "abi")
    stored = os.path.join(here, "mneme.abi")
    if shutil.which("abidw") is None or shutil.which("abidiff") is None:
        return skip("abidw and abidiff are not installed (package abigail-tools)")
    if platform.machine() != "x86_64":
        return skip(f"the stored ABI is that of x86_64, and this machine is {platform.machine()}")
    with tempfile.TemporaryDirectory(prefix="mneme-test-") as folder:
        library = build(os.path.join(root, "capi", "include", "mneme.h"), compiler, folder)
        if write:
            with open(stored, "w", encoding="utf-8") as file:
                file.write(describe(library))
            return 0
        result = subprocess.run(["abidiff", "--no-added-syms", "--suppressions", os.path.join(here, "compatible.ini"),
                                 stored, library], capture_output=True, text=True)
    if result.returncode == 0:
        return 0
    print(result.stdout + result.stderr)
    print("The ABI has changed in a way that breaks programs that are built already: see docs/abi.md.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:] == ["--write"]))
