# SPDX-License-Identifier: Apache-2.0
"""Runs the pages' Python code: the blocks of a page one after the other, in an empty folder.

PYTHONPATH leads to the package. Blocks that are quoted from a file are left out, since that file is run.

python_test.py ROOT
"""
import os
import subprocess
import sys
import tempfile
import unittest

import pages


class PythonTest(unittest.TestCase):
    def run_code(self, code):
        with tempfile.TemporaryDirectory(prefix="mneme-test-") as folder:
            return subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True,
                                  text=True, timeout=120)

    def test_blocks_run(self):
        checked = 0
        for page in pages.pages(ROOT):
            blocks = [fence for fence in page.fences
                      if fence.language == "python" and not fence.note.startswith("quoted from")]
            if not blocks:
                continue
            checked += len(blocks)
            # Lines keep their numbers, so that an error names the page's line.
            code = ""
            for fence in blocks:
                code += "\n" * (fence.line - code.count("\n")) + fence.text
            with self.subTest(page=page.path):
                result = self.run_code(code)
                self.assertEqual(result.returncode, 0, f"{page.path}: {result.stderr}")
        self.assertGreater(checked, 3)

    def test_wrong_code_does_not(self):
        self.assertNotEqual(self.run_code("import mneme\nmneme.open()\n").returncode, 0)


if __name__ == "__main__":
    ROOT = os.path.abspath(sys.argv[1])
    unittest.main(argv=sys.argv[:1])
