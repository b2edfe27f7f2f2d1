# SPDX-License-Identifier: Apache-2.0
"""The installed adapter: a stranger's C program finds header and library by pkg-config.

installed_test.py BUILD CMAKE CC LLAMA PROGRAM: installs what BUILD has below a temporary prefix. LLAMA is llama.cpp's
folder, PROGRAM the program's source.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

BUILD, CMAKE, CC, LLAMA, PROGRAM = sys.argv[1:6]


def run(*command, **options):
    """The output of a command that must succeed."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout


with tempfile.TemporaryDirectory() as folder:
    prefix = pathlib.Path(folder) / "prefix"
    for component in ("runtime", "development", "llamacpp"):
        run(CMAKE, "--install", BUILD, "--prefix", prefix, "--component", component)
    pkgconfig = next(prefix.glob("lib/**/mneme_llama.pc")).parent
    environment = {**os.environ, "PKG_CONFIG_LIBDIR": str(pkgconfig)}
    flags = {what: run("pkg-config", f"--{what}", "mneme_llama", env=environment).split() for what in ("cflags", "libs")}
    libraries = [f"-L{LLAMA}/build/bin", "-lllama", "-lggml", "-lggml-base", "-lm"]
    program = pathlib.Path(folder) / "program"
    run(CC, "-Wall", "-Wextra", "-Werror", f"-I{LLAMA}/include", f"-I{LLAMA}/ggml/include", *flags["cflags"], PROGRAM,
        "-o", program, *flags["libs"], *libraries)
    environment["LD_LIBRARY_PATH"] = f"{pkgconfig.parent}:{LLAMA}/build/bin"
    output = run(program, env=environment)
    if "with llama.cpp" not in output:
        sys.exit(f"unexpected output: {output}")
