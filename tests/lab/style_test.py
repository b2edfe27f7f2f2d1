# SPDX-License-Identifier: Apache-2.0
"""mypy --strict over mneme-lab, and its licence lines. ruff runs with the Python package's tests."""
from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_types(tmp_path):
    program = os.environ.get("MNEME_MYPY") or shutil.which("mypy")
    if not program:
        pytest.skip("mypy is not installed (scripts/python-tools)")
    result = subprocess.run([program, "--python-version", "3.11", "--cache-dir", str(tmp_path),
                             "bench/scaling/mneme_lab"],
                            cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_says_its_licence():
    for path in [*ROOT.glob("bench/scaling/**/*.py"), *ROOT.glob("tests/lab/*.py")]:
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
