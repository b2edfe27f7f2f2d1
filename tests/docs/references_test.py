# SPDX-License-Identifier: Apache-2.0
"""Checks what the pages refer to: links, anchors, paths of the repository, names of the interface and of the sources.

references_test.py ROOT
"""
import os
import re
import sys
import unittest

import pages

PATH = re.compile(r"(?<![\w./-])((?:%s)/[\w./*+-]*)" % "|".join(pages.SOURCE_FOLDERS + ("docs",)))
DOCS_PAGE = re.compile(r"(?<![\w./-])docs/[\w/.-]+\.(?:md|svg|png)")
INTERFACE_NAME = re.compile(r"\b(?:mneme_[a-z0-9_]+|MNEME_[A-Z0-9_]+)\b(?!\*)")
CLASS_NAME = re.compile(r"^(?:[A-Z][a-z0-9]+){2,}(?:\(\))?(?:::\w+)?$")
# Names of others that pages mention.
FOREIGN = {"FlashAttention", "FlashInfer"}


class ReferencesTest(unittest.TestCase):
    def setUp(self):
        self.pages = pages.pages(ROOT)
        self.sources = pages.sources(ROOT)

    def exists(self, path):
        return os.path.exists(os.path.join(ROOT, path))

    def test_there_are_pages(self):
        self.assertGreater(len(self.pages), 5)
        self.assertGreater(len(self.sources), 100)

    def test_links_lead_somewhere(self):
        anchors = {page.path: page.anchors() for page in self.pages}
        for page in self.pages:
            for target in page.links():
                if re.match(r"[a-z]+:", target):
                    continue
                with self.subTest(page=page.path, link=target):
                    path, _, anchor = target.partition("#")
                    path = os.path.normpath(os.path.join(os.path.dirname(page.path), path)) if path else page.path
                    self.assertTrue(self.exists(path), "no such file")
                    if anchor:
                        self.assertIn(anchor, anchors[path])

    def test_every_page_can_be_reached_from_the_readme(self):
        by_path = {page.path: page for page in self.pages}
        reached, waiting = set(), ["README.md"]
        while waiting:
            path = waiting.pop()
            if path in reached or path not in by_path:
                continue
            reached.add(path)
            for target in by_path[path].links():
                target = target.partition("#")[0]
                waiting.append(os.path.normpath(os.path.join(os.path.dirname(path), target)))
        beside_sources = {path for path in by_path if path.split("/")[0] in pages.SOURCE_FOLDERS}
        self.assertEqual(set(by_path) - reached - beside_sources, set())

    def test_paths_exist(self):
        for page in self.pages:
            for text in page.code_spans() + [fence.text for fence in page.fences if fence.language == "text"]:
                for path in PATH.findall(text):
                    path = path.rstrip(".,:")
                    with self.subTest(page=page.path, path=path):
                        self.assertTrue("*" in path or self.exists(path) or self.exists(path + ".h"), "no such path")

    def test_sources_name_pages_that_exist(self):
        for path, text in self.sources.items():
            for page in DOCS_PAGE.findall(text):
                if path.startswith("tests/docs/"):
                    continue
                with self.subTest(source=path, page=page):
                    self.assertTrue(self.exists(page), "no such page")

    def test_names_of_the_interface_exist(self):
        known = set()
        for path, text in self.sources.items():
            if not path.endswith(".md"):
                known.update(INTERFACE_NAME.findall(text))
        files = {os.path.basename(path).split(".")[0] for path in self.sources}
        for page in self.pages:
            if page.path == "CHANGELOG.md":  # it tells of names that are gone
                continue
            for name in INTERFACE_NAME.findall(page.text):
                with self.subTest(page=page.path, name=name):
                    self.assertTrue(name in known or name in files, "no source has it")

    def test_classes_and_functions_exist(self):
        words = set(re.findall(r"\w+", "\n".join(self.sources.values())))
        for page in self.pages:
            if page.path == "CHANGELOG.md":
                continue
            for span in page.code_spans():
                if not CLASS_NAME.match(span) or span in FOREIGN:
                    continue
                for word in re.findall(r"\w+", span):
                    with self.subTest(page=page.path, name=span):
                        self.assertIn(word, words)

    def test_concepts_have_the_nouns_of_the_header(self):
        with open(os.path.join(ROOT, "capi/include/mneme.h"), encoding="utf-8") as file:
            header = file.read()
        handles = re.findall(r"^typedef struct mneme_(\w+) mneme_\1;", header, re.MULTILINE)
        families = re.findall(r"^typedef enum mneme_(\w+)", header, re.MULTILINE)
        self.assertGreater(len(handles), 4)
        self.assertGreater(len(families), 6)
        concepts = next(page for page in self.pages if page.path == "docs/concepts.md").text
        words = {name.replace("_", " ") for name in handles + families}
        words -= {"class", "device type", "log level", "rotary layout", "status", "store mode"}  # they explain themselves
        for word in words:
            with self.subTest(word):
                self.assertRegex(concepts.lower(), r"\b%s" % word)

    def test_figures_stand_on_one_short_page(self):
        page = next(page for page in self.pages if page.path == "docs/performance.md")
        self.assertLessEqual(page.text.count("\n"), 150)

    def test_blocks_name_their_language(self):
        known = {"sh", "console", "c", "python", "text", "cmake", "json"}
        for page in self.pages:
            for fence in page.fences:
                with self.subTest(page=page.path, line=fence.line):
                    self.assertIn(fence.language, known)


if __name__ == "__main__":
    ROOT = os.path.abspath(sys.argv.pop(1))
    unittest.main()
