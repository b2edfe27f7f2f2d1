# SPDX-License-Identifier: Apache-2.0
"""mypy --strict and ruff over the package.

MNEME_MYPY and MNEME_RUFF name the programs; without one its test is skipped.
"""
from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(tool, *arguments):
    program = os.environ.get(f"MNEME_{tool.upper()}") or shutil.which(tool)
    if not program:
        pytest.skip(f"{tool} is not installed (scripts/python-tools)")
    result = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_types(tmp_path):
    run("mypy", "--cache-dir", str(tmp_path), "python/mneme")


def test_types_of_a_user(tmp_path):
    """A typed program that uses the package is checked: py.typed is there, and nothing public is Any by accident."""
    (tmp_path / "user.py").write_text(
        "import mneme\n"
        "with mneme.open('x') as store:\n"
        "    memory = store.get('a')\n"
        "    reveal_type(memory)\n"
        "    reveal_type(store['a'].info().tokens)\n"
        "    reveal_type(store['a'].commit())\n"
    )
    program = os.environ.get("MNEME_MYPY") or shutil.which("mypy")
    if not program:
        pytest.skip("mypy is not installed (scripts/python-tools)")
    result = subprocess.run([program, "--strict", "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "user.py")],
                            env={**os.environ, "MYPYPATH": str(ROOT / "python")}, cwd=tmp_path, capture_output=True,
                            text=True, check=False)
    revealed = [line.rpartition('"')[0].rpartition('"')[2] for line in result.stdout.splitlines() if "Revealed" in line]
    assert revealed[0].replace("Union[", "").replace(", ", " | ").strip("]") == "mneme._memory.Memory | None"
    assert [name.rpartition(".")[2] for name in revealed[1:]] == ["int", "int"]


def test_ruff(tmp_path):
    run("ruff", "check", "--cache-dir", str(tmp_path), ".")


def test_every_file_says_its_licence():
    for path in [*ROOT.glob("python/**/*.py"), *ROOT.glob("tests/python/*.py")]:
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
