# SPDX-License-Identifier: Apache-2.0
"""The project's Markdown pages, taken apart for the tests of this folder."""
import dataclasses
import functools
import os
import re

FENCE = re.compile(r"^```(.*)$")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
CODE_SPAN = re.compile(r"(`+)(.+?)\1", re.DOTALL)
SOURCE_SUFFIXES = (".h", ".cc", ".c", ".cu", ".cuh", ".py", ".sh", ".txt", ".cmake", ".md")
SOURCE_FOLDERS = ("attention", "base", "bench", "capi", "cli", "cmake", "examples", "hosts", "index", "memory", "python",
                  "scripts", "storage", "tests")


@dataclasses.dataclass
class Fence:
    """A fenced block. `note` is the HTML comment on the line before it, "" if there is none."""
    language: str
    line: int
    text: str
    note: str


def slug(heading):
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


class Page:
    """One page. `path` is relative to the root; `prose` is the text without fenced blocks, with the same lines."""

    def __init__(self, root, path):
        self.path = path
        with open(os.path.join(root, path), encoding="utf-8") as file:
            self.text = file.read()
        self.fences = []
        prose = []
        fence = None
        note = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            match = FENCE.match(line)
            if match and fence is None:
                fence = Fence(match.group(1).strip(), number, "", note)
            elif match:
                self.fences.append(fence)
                fence = None
            elif fence is not None:
                fence.text += line + "\n"
            else:
                prose.append(line)
                if line.strip():
                    note = line[4:-3].strip() if line.startswith("<!--") and line.endswith("-->") else ""
                continue
            prose.append("")
        assert fence is None, f"{path}: a fenced block does not end"
        self.prose = "\n".join(prose)

    def anchors(self):
        found, seen = set(), {}
        for line in self.prose.splitlines():
            match = HEADING.match(line)
            if match:
                anchor = slug(match.group(2))
                count = seen.get(anchor, 0)
                seen[anchor] = count + 1
                found.add(anchor if count == 0 else f"{anchor}-{count}")
        return found

    def links(self):
        """The targets of links and pictures, as written."""
        return [target for _, _, target in LINK.findall(CODE_SPAN.sub("", self.prose))] + \
            [target for _, text, target in LINK.findall(self.prose) if "`" in text]

    def code_spans(self):
        return [text.strip() for _, text in CODE_SPAN.findall(self.prose)]


@functools.lru_cache
def pages(root):
    """Every page of the project: those of the root, those of docs/ and those beside the sources."""
    paths = [name for name in sorted(os.listdir(root)) if name.endswith(".md")]
    for folder, _, names in sorted(os.walk(os.path.join(root, "docs"))):
        if os.path.basename(folder) == "site":  # what scripts/docs builds the site with
            continue
        paths += [os.path.relpath(os.path.join(folder, name), root) for name in sorted(names) if name.endswith(".md")]
    paths += sorted(path for path in sources(root) if path.endswith(".md"))
    return [Page(root, path) for path in paths]


@functools.lru_cache
def sources(root):
    """Path and text of every source file below SOURCE_FOLDERS, of the build files and of the scripts."""
    found = {}
    for top in SOURCE_FOLDERS:
        for folder, _, names in os.walk(os.path.join(root, top)):
            if "__pycache__" in folder:
                continue
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), root)
                try:
                    with open(os.path.join(root, path), encoding="utf-8") as file:
                        found[path] = file.read()
                except UnicodeDecodeError:
                    continue
    for name in ("CMakeLists.txt", "CMakePresets.json"):
        with open(os.path.join(root, name), encoding="utf-8") as file:
            found[name] = file.read()
    return found
