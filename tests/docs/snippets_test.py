# SPDX-License-Identifier: Apache-2.0
"""Compiles the pages' C code against the header.

A block with functions is a file of its own. Other blocks are statements: they are compiled inside a function, after the
declarations of snippet.h. Blocks that are quoted from a file are left out, since that file is compiled. Code for CUDA
and llama.cpp is compiled against the few declarations of them in snippet.h.

snippets_test.py ROOT COMPILER
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest

import pages

FUNCTION = re.compile(r"^(?!for|if|while|switch)\w[^;=]*\)\s*\{$", re.MULTILINE)


class SnippetsTest(unittest.TestCase):
    def compile(self, text):
        code = '#include "snippet.h"\n'
        code += text if FUNCTION.search(text) else "void snippet(void);\nvoid snippet(void) {\n" + text + "}\n"
        with tempfile.TemporaryDirectory(prefix="mneme-test-") as folder:
            path = os.path.join(folder, "snippet.c")
            with open(path, "w", encoding="utf-8") as file:
                file.write(code)
            includes = [os.path.join(ROOT, "capi", "include"), os.path.join(ROOT, "hosts", "llamacpp", "include"),
                        os.path.join(ROOT, "tests", "docs")]
            command = [COMPILER, "-std=c11", "-Wall", "-Werror", "-Wno-unused", "-fsyntax-only",
                       *[f"-I{include}" for include in includes], path]
            return subprocess.run(command, capture_output=True, text=True, timeout=60)

    def test_snippets_compile(self):
        checked = 0
        for page in pages.pages(ROOT):
            for fence in page.fences:
                if fence.language != "c" or fence.note.startswith("quoted from"):
                    continue
                checked += 1
                with self.subTest(page=page.path, line=fence.line):
                    result = self.compile(fence.text)
                    self.assertEqual(result.returncode, 0, result.stderr)
        self.assertGreater(checked, 0)

    def test_a_wrong_snippet_does_not(self):
        self.assertNotEqual(self.compile("mneme_memory_open(store);\n").returncode, 0)


if __name__ == "__main__":
    ROOT, COMPILER = os.path.abspath(sys.argv[1]), sys.argv[2]
    unittest.main(argv=sys.argv[:1])
