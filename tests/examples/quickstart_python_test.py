# SPDX-License-Identifier: Apache-2.0
"""Runs examples/quickstart.py as its reader would. PYTHONPATH leads to the package.

quickstart_python_test.py PROGRAM
"""
import os
import subprocess
import sys
import tempfile
import unittest


class QuickstartPythonTest(unittest.TestCase):
    def test_remembers_and_recalls(self):
        with tempfile.TemporaryDirectory(prefix="mneme-test-") as folder:
            for expected in ("remembered 1000 tokens; run me again\n", *["token 123 answers head 0, token 123 head 3\n"] * 2):
                result = subprocess.run([sys.executable, PROGRAM, os.path.join(folder, "store")], capture_output=True,
                                        text=True, timeout=60)
                self.assertEqual((result.returncode, result.stdout, result.stderr), (0, expected, ""))


if __name__ == "__main__":
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
