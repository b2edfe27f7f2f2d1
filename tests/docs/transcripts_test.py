# SPDX-License-Identifier: Apache-2.0
"""Runs the pages' console sessions and compares what they print.

A block of the language `console` has commands after "$ " and their output. The blocks of one page are one session in an
empty folder. A line "…" stands for any lines, "…" within a line for any text. A block below `<!-- not run: REASON -->`
is left out.

transcripts_test.py ROOT MNEME QUICKSTART
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest

import pages


def steps(text):
    """Commands of a block with their output."""
    command, output = None, []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, output
            command, output = line[2:], []
        elif command is not None and command.endswith("\\"):
            command = command[:-1] + line
        else:
            output.append(line)
    if command is not None:
        yield command, output


def pattern(lines):
    parts = []
    for line in lines:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*?")
        else:
            parts.append(re.escape(line.rstrip()).replace("…", ".*") + r" *\n")
    return re.compile("".join(parts))


class TranscriptsTest(unittest.TestCase):
    maxDiff = None

    def run_page(self, page):
        ran = 0
        with tempfile.TemporaryDirectory(prefix="mneme-test-") as folder:
            programs = os.path.join(folder, "programs")
            work = os.path.join(folder, "work")
            os.mkdir(programs)
            os.mkdir(work)
            for name, path in PROGRAMS.items():
                os.symlink(path, os.path.join(programs, name))
            environment = {**os.environ, "PATH": programs + ":" + os.environ["PATH"], "LC_ALL": "C.UTF-8"}
            status = 0
            for fence in page.fences:
                if fence.language != "console" or fence.note.startswith("not run:"):
                    continue
                for command, output in steps(fence.text):
                    result = subprocess.run(["bash", "-c", f"(exit {status})\n{command}"], cwd=work, env=environment,
                                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                            text=True, timeout=120)
                    status = result.returncode
                    ran += 1
                    with self.subTest(page=page.path, line=fence.line, command=command):
                        if not pattern(output).fullmatch(result.stdout):
                            self.assertMultiLineEqual("\n".join(output) + "\n", result.stdout)
        return ran

    def test_sessions(self):
        ran = {page.path: self.run_page(page) for page in pages.pages(ROOT)}
        for path in ("docs/cli.md", "docs/quickstart.md"):
            self.assertGreater(ran[path], 0, path)


if __name__ == "__main__":
    ROOT = os.path.abspath(sys.argv[1])
    PROGRAMS = {"mneme": os.path.abspath(sys.argv[2]), "quickstart": os.path.abspath(sys.argv[3])}
    unittest.main(argv=sys.argv[:1])
