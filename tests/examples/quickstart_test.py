# SPDX-License-Identifier: Apache-2.0
"""Runs examples/quickstart as its reader would, and on what it must refuse.

quickstart_test.py PROGRAM
"""
import os
import subprocess
import sys
import tempfile
import unittest


class QuickstartTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="mneme-test-")
        self.addCleanup(self.folder.cleanup)
        self.store = os.path.join(self.folder.name, "store")

    def run_program(self, *arguments):
        return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60)

    def expect_output(self, expected, *arguments):
        result = self.run_program(*arguments)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, expected, ""))

    def expect_refusal(self, exit_code, *words, arguments):
        result = self.run_program(*arguments)
        self.assertEqual(result.returncode, exit_code, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_remembers_and_recalls(self):
        self.expect_output("remembered 1000 tokens; run me again\n", self.store)
        for _ in range(2):
            self.expect_output("token 123 answers head 0, token 123 head 1\n", self.store)

    def test_refuses_a_store_that_is_a_file(self):
        with open(self.store, "w") as file:
            file.write("text")
        self.expect_refusal(1, "quickstart: cannot open the store: ", self.store, arguments=[self.store])
        with open(self.store) as file:
            self.assertEqual(file.read(), "text")

    def test_refuses_a_memory_of_another_model(self):
        self.expect_output("remembered 1000 tokens; run me again\n", self.store)
        self.expect_refusal(1, "quickstart: cannot open the memory: FAILED_PRECONDITION: ", "other-model",
                            arguments=[self.store, "other-model"])
        self.expect_output("token 123 answers head 0, token 123 head 1\n", self.store)

    def test_refuses_a_store_that_is_damaged(self):
        self.expect_output("remembered 1000 tokens; run me again\n", self.store)
        with open(os.path.join(self.store, "CURRENT"), "w") as file:
            file.write("no manifest\n")
        self.expect_refusal(1, "quickstart: cannot open the store: DATA_LOSS: ", arguments=[self.store])

    def test_refuses_missing_arguments(self):
        self.expect_refusal(2, "usage: ", arguments=[])


if __name__ == "__main__":
    PROGRAM = os.path.abspath(sys.argv.pop(1))
    unittest.main()
