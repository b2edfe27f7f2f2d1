# SPDX-License-Identifier: Apache-2.0
"""Runs a notebook in a new process of Python and looks at what it shows.

    notebook_test.py NOTEBOOK
"""
from __future__ import annotations

import sys

import nbclient
import nbformat


def main(path):
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3, f"expected 3 pictures, got {len(pictures)}"
    lines = "".join(output.text for output in outputs if output.get("name") == "stdout").splitlines()
    perplexities = [float(line.split()[-1]) for line in lines if "perplexity" in line]
    assert len(perplexities) == 3, lines
    assert perplexities[2] < perplexities[1] < perplexities[0], f"more memory must predict better, got {perplexities}"
    assert sum(line.endswith("us a step") for line in lines) == 3, lines
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not errors, errors


if __name__ == "__main__":
    main(sys.argv[1])
