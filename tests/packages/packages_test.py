# SPDX-License-Identifier: Apache-2.0
"""The Debian packages of this build: what is in them, and that a stranger's program finds the library by them.

packages_test.py BUILD SOURCES CMAKE QUICKSTART: packs what BUILD has, unpacks it below a temporary root, and uses it
there. Nothing is installed. QUICKSTART is the example program, built.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD, SOURCES, CMAKE, QUICKSTART = (pathlib.Path(argument) for argument in sys.argv[1:5])
SKIPPED = 77


def run(*command, **options):
    """The output of a command that must succeed."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if result.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


class PackagesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.temporary.cleanup)
        cls.folder = pathlib.Path(cls.temporary.name)
        run(CMAKE.with_name("cpack"), "-G", "DEB", "-B", cls.folder / "packed", cwd=BUILD)
        cls.packages = {path.name.split("_")[0]: path for path in (cls.folder / "packed").glob("*.deb")}
        cls.root = cls.folder / "root"
        for path in cls.packages.values():
            run("dpkg-deb", "-x", path, cls.root)
        cls.library = next(cls.root.glob("usr/lib/**/libmneme.so.0")).parent
        cls.environment = {**os.environ, "LD_LIBRARY_PATH": str(cls.library)}
        cls.environment["PATH"] = f"{cls.root}/usr/bin:{os.environ['PATH']}"

    def field(self, package, name):
        return run("dpkg-deb", "-f", self.packages[package], name).strip()

    def test_there_are_three_and_they_depend_on_each_other(self):
        self.assertEqual(sorted(self.packages), ["libmneme-dev", "libmneme0", "mneme-tools"])
        version = re.escape(self.field("libmneme0", "Version"))
        for package in ("libmneme-dev", "mneme-tools"):
            self.assertRegex(self.field(package, "Depends"), rf"libmneme0 \(= {version}\)")
        self.assertIn("librocksdb", self.field("libmneme0", "Depends"))

    def test_each_says_whose_code_it_has(self):
        for package in self.packages:
            text = (self.root / "usr/share/doc" / package / "copyright").read_text()
            for name in ("Apache-2.0", "FAISS", "Abseil", "xxHash", "CLI11"):
                self.assertIn(name, text)

    def test_a_program_finds_the_library_by_pkg_config(self):
        environment = {**self.environment, "PKG_CONFIG_LIBDIR": str(self.library / "pkgconfig"),
                       "PKG_CONFIG_SYSROOT_DIR": ""}
        flags = run("pkg-config", "--cflags", "--libs", "mneme", env=environment).split()
        program = self.folder / "by_pkg_config"
        run("cc", SOURCES / "examples/quickstart.c", "-o", program, *flags)
        self.assertIn("remembered", run(program, self.folder / "store1", env=environment))

    def test_a_program_finds_the_library_by_cmake(self):
        project = self.folder / "project"
        project.mkdir()
        shutil.copy(SOURCES / "examples/quickstart.c", project)
        (project / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(stranger C)\nfind_package(mneme 0.1 REQUIRED)\n"
            "add_executable(stranger quickstart.c)\ntarget_link_libraries(stranger mneme::mneme)\n")
        run(CMAKE, "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={self.root}/usr")
        run(CMAKE, "--build", project / "build")
        self.assertIn("remembered", run(project / "build/stranger", self.folder / "store2", env=self.environment))

    def test_every_command_has_a_manual_page(self):
        pages = self.root / "usr/share/man/man1"
        commands = re.findall(r"^  ([a-z]+) ", run("mneme", "--help", env=self.environment).split("Subcommands:")[1],
                              re.MULTILINE)
        self.assertIn("verify", commands)
        self.assertEqual(sorted(path.name for path in pages.iterdir()),
                         sorted(["mneme.1", *(f"mneme-{command}.1" for command in commands)]))
        for command in commands:
            text = (pages / f"mneme-{command}.1").read_text()
            self.assertRegex(text, rf"(?m)^mneme-{command} \\- [a-z]")
            self.assertRegex(text, rf"SYNOPSIS\n\.B mneme\n\S*{command} .*(STORE|FOLDER)")

    def complete(self, *words):
        """What bash offers for the last of `words`."""
        completion = self.root / "usr/share/bash-completion/completions/mneme"
        script = (f'source "{completion}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); __mneme; '
                  'printf "%s\\n" "${COMPREPLY[@]}"')
        return run("bash", "-c", script, "bash", *words, env=self.environment, cwd=self.folder).split()

    def test_bash_completes_commands_options_folders_and_names(self):
        run(QUICKSTART, self.folder / "memories")
        self.assertEqual(self.complete("mneme", "ver"), ["verify"])
        self.assertEqual(self.complete("mneme", "maintain", "--th"), ["--threads"])
        self.assertEqual(self.complete("mneme", "info", "memor"), ["memories"])
        self.assertEqual(self.complete("mneme", "info", "memories", "us"), ["user-42"])
        self.assertEqual(self.complete("mneme", "evict", "--keep", "5", "memories", ""), ["user-42"])
        self.assertEqual(self.complete("mneme", "list", "memories", ""), [])
        self.assertEqual(self.complete("mneme", "info", "nowhere", ""), [])


if __name__ == "__main__":
    missing = [tool for tool in ("dpkg-deb", "dpkg-shlibdeps", "pkg-config", "help2man", "file") if not shutil.which(tool)]
    if missing:
        print(f"skipped: {', '.join(missing)} not found")
        sys.exit(SKIPPED)
    unittest.main(argv=sys.argv[:1], verbosity=2)
