# SPDX-License-Identifier: Apache-2.0
"""Checks that every command in the pages exists and has the options that it is called with.

commands_test.py ROOT BUILD [PROGRAM...]     PROGRAM: mneme, mneme-llama; asked for their options by --help where given
"""
import functools
import os
import re
import shlex
import subprocess
import sys
import unittest

import pages

# Commands of the system. Their options are their own.
SYSTEM = {"apt-get", "cc", "cd", "cp", "dd", "echo", "git", "head", "ls", "mv", "pip", "pkg-config", "printf", "rm", "sed", "sudo"}
PROGRAMS = {"mneme": "cli", "mneme-llama": "hosts/llamacpp/main"}
SPAN = re.compile(r"^(?:mneme(?:-llama)?|cmake|ctest|scripts/[\w-]+|build/[\w/.-]+)\s+\S")


def commands(text, console):
    """The simple commands of a block, as lists of words."""
    text = text.replace("\\\n", " ")
    for line in text.splitlines():
        if console:
            if not line.startswith("$ "):
                continue
            line = line[2:]
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
        lexer.whitespace_split = True
        command = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[|&;()<>]+", word):
                if command:
                    yield command
                command = []
                if "<" in word or ">" in word:  # the file that follows is no command
                    command = ["echo"]
            elif command or not re.fullmatch(r"\w+=.*", word):
                command.append(word)


def options(words):
    return [word.split("=")[0] for word in words if word.startswith("-") and word not in ("-", "--")]


class CommandsTest(unittest.TestCase):
    def setUp(self):
        self.sources = pages.sources(ROOT)
        self.build_files = "\n".join(text for path, text in self.sources.items() if path.endswith("CMakeLists.txt"))

    def test_commands_of_blocks(self):
        checked = 0
        for page in pages.pages(ROOT):
            for fence in page.fences:
                if fence.language not in ("sh", "console"):
                    continue
                for command in commands(fence.text, fence.language == "console"):
                    checked += 1
                    with self.subTest(page=page.path, line=fence.line, command=" ".join(command)):
                        self.check(command)
        self.assertGreater(checked, 10)

    def test_commands_in_sentences(self):
        for page in pages.pages(ROOT):
            if page.path == "CHANGELOG.md":
                continue
            for span in page.code_spans():
                if not SPAN.match(span):
                    continue
                for command in commands(re.sub(r"[\[\]…|]|\.\.\.", " ", span), console=False):
                    with self.subTest(page=page.path, command=span):
                        self.check(command)

    def check(self, command):
        name, words = command[0], command[1:]
        if name in SYSTEM:
            return
        if name.startswith("scripts/"):
            self.check_script(name, words)
        elif name in PROGRAMS:
            self.check_program(name, words)
        elif name == "python3":
            self.check_python(words)
        elif name == "cmake":
            self.check_cmake(words)
        elif name == "ctest":
            self.check_ctest(words)
        elif name.startswith(("build/", "./quickstart", "quickstart")):
            self.check_built(name, words)
        else:
            self.fail(f"{name} is not known to this test")

    def check_script(self, name, words):
        self.assertTrue(os.access(os.path.join(ROOT, name), os.X_OK), "no such script")
        text = self.sources[name]
        for option in options(words):
            self.assertIn(option, text)

    def check_program(self, name, words):
        path = next((path for path in TOOLS if os.path.basename(path) == name), None)
        subcommand = next((word for word in words if not word.startswith("-")), None)
        folder = PROGRAMS[name]
        known = "\n".join(text for source, text in self.sources.items() if source.startswith(folder))
        known += " --help"
        if subcommand is not None:
            self.assertRegex(known, f'"{re.escape(subcommand)}"')
        if path is not None:
            known = self.help_of(path, subcommand)
        given = words[:words.index("--")] if "--" in words else words
        for option in options(given):
            self.assertRegex(known, re.escape(option) + r"(?![\w-])")

    @functools.lru_cache
    def help_of(self, path, subcommand):
        command = [path] + ([subcommand] if subcommand else []) + ["--help"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stdout

    def check_python(self, words):
        self.assertIn(words[0], self.sources, "no such program")
        for option in options(words):
            self.assertIn(option, self.sources[words[0]])

    def check_cmake(self, words):
        for index, word in enumerate(words):
            if word == "--preset":
                self.assertIn(f'{{"name": "{words[index + 1]}"', self.sources["CMakePresets.json"])
            elif word == "--target":
                self.assertRegex(self.build_files, r"\b%s\b" % re.escape(words[index + 1]))
            elif word.startswith("-DMNEME_"):
                name = re.match(r"-D(\w+)", word).group(1)
                self.assertRegex("\n".join(self.sources.values()), r"(option|set)\(%s\b" % name)

    def check_ctest(self, words):
        chosen = [part for index, word in enumerate(words) if word in ("-R", "-L") for part in words[index:index + 2]]
        if not chosen:
            return
        result = subprocess.run(["ctest", "--test-dir", BUILD, "-N", *chosen], capture_output=True, text=True, timeout=120)
        # Suites that are not built yet tell their tests to ctest later.
        total = int(re.search(r"Total Tests: (\d+)", result.stdout).group(1))
        self.assertGreater(total, 0, "no test has this name or label")

    def check_built(self, name, words):
        target = os.path.basename(name)
        if target == "quickstart":
            target = "example_quickstart"
        self.assertRegex(self.build_files, r"\b%s\b" % re.escape(target))
        for word in words:
            option, _, pattern = word.partition("=")
            if option in ("--benchmark_filter", "--gtest_filter"):
                folder = "bench/" if option == "--benchmark_filter" else "tests/"
                text = "\n".join(text for path, text in self.sources.items() if path.startswith(folder))
                for part in re.findall(r"[A-Za-z_]{4,}", pattern):
                    self.assertIn(part, text)


if __name__ == "__main__":
    ROOT, BUILD = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
    TOOLS = [os.path.abspath(path) for path in sys.argv[3:] if os.path.exists(path)]
    unittest.main(argv=sys.argv[:1])
