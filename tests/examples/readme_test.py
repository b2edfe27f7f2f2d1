# SPDX-License-Identifier: Apache-2.0
"""Checks that README.md quotes the examples verbatim.

A code block below the line `<!-- quoted from FILE -->` must equal the lines of FILE between the comments
`README: begin` and `README: end`. Every example with these lines must be quoted.

readme_test.py ROOT
"""
import glob
import os
import re
import sys
import unittest

QUOTE = re.compile(r"^<!-- quoted from (\S+) -->\n+```(?:c|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REGION = re.compile(r"^(?:/\*|#) README: begin(?: \*/)?\n(.*?)^ *(?:/\*|#) README: end(?: \*/)?$", re.MULTILINE | re.DOTALL)


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


class ReadmeTest(unittest.TestCase):
    maxDiff = None

    def test_quotes_every_example(self):
        marked = [os.path.relpath(path, ROOT) for path in glob.glob(os.path.join(ROOT, "examples", "**"), recursive=True)
                  if os.path.isfile(path) and REGION.search(read(path))]
        self.assertTrue(marked)
        self.assertCountEqual(marked, [path for path, _ in QUOTE.findall(read("README.md"))])

    def test_quotes_are_verbatim(self):
        for path, block in QUOTE.findall(read("README.md")):
            with self.subTest(path):
                self.assertMultiLineEqual(REGION.search(read(path)).group(1), block)

    def test_links_lead_to_files(self):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", read("README.md")):
            self.assertTrue(os.path.exists(os.path.join(ROOT, link)), link)


if __name__ == "__main__":
    ROOT = os.path.abspath(sys.argv.pop(1))
    unittest.main()
