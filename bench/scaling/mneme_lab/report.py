# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one HTML page that needs no other file, and its plots as PNG and SVG."""
from __future__ import annotations

import pathlib
import shlex

import jinja2

from mneme_lab import plots, sentences
from mneme_lab.curves import curves
from mneme_lab.results import Results


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["interval"] = sentences.interval
    environment.filters["command"] = lambda words: shlex.join(["mneme-llama", *words])
    return environment


def write(results: Results) -> pathlib.Path:
    """Writes report.html, scaling.svg and scaling.png beside the results; returns the page's path."""
    measured = list(results.load().values())
    made = curves(measured, results.folder)
    if not made:
        raise ValueError(f"{results.path}: no memory is measured yet")
    figure = plots.scaling(made)
    for kind in ("png", "svg"):
        plots.save(figure, results.folder / f"scaling.{kind}")
    page = _environment().get_template("report.html.j2").render(
        title=measured[0]["grid"], curves=made, plot=plots.svg(figure), describe=sentences.describe,
        programs=sorted({result["program"] for result in measured}),
        machines=sorted({f"{result['machine']['processor']}, {result['machine']['cores']} cores"
                         for result in measured}),
        begin=min(result["started"] for result in measured)[:10],
        end=max(result["started"] for result in measured)[:10],
    )
    plots.close(figure)
    path = results.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
