# SPDX-License-Identifier: Apache-2.0
"""Doxygen's input filter: makes the headers' plain comments Doxygen's.

A comment above a declaration becomes its description, a comment behind a field or a constant that of the field. Comments
that are Doxygen's already stay, and so do headings. Line numbers grow by one.

doxygen_comments.py HEADER     writes the result to stdout
"""
import re
import sys


def converted(text):
    lines = []
    first = True
    for line in text.split("\n"):
        if "/**" in line or re.match(r"/\* -{4,}", line):
            pass
        elif line.startswith("/* ") and first:
            line = line.replace("/* ", "/** @file\n * ", 1)
            first = False
        elif line.startswith("/* "):
            line = line.replace("/* ", "/** ", 1)
        elif re.match(r"\s*[^\s/].*/\* ", line) and not line.startswith("#"):
            line = line.replace("/* ", "/**< ", 1)
        elif re.match(r"\s+size_t struct_size;$", line):
            line += " /**< the struct's size, set by its initialiser */"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        sys.stdout.write(converted(file.read()))
