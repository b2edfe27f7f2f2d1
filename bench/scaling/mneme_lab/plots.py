# SPDX-License-Identifier: Apache-2.0
"""The plots of a report, as SVG and PNG."""
from __future__ import annotations

import io
import pathlib
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("Agg")  # before pyplot: no display
mpl.rcParams["svg.hashsalt"] = "mneme-lab"  # the same plot is the same file
mpl.rcParams["svg.fonttype"] = "none"

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mneme_lab.curves import Curve  # noqa: E402

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def _draw_curve(axes: Axes, curve: Curve, colour: str) -> None:
    sizes = [point.size for point in curve.points]
    losses = [point.loss.mean for point in curve.points]
    errors = np.array([[point.loss.mean - point.loss.low, point.loss.high - point.loss.mean] for point in curve.points])
    axes.errorbar(sizes, losses, yerr=errors.T, fmt="o", color=colour, capsize=3, label=curve.label)
    axes.plot(sizes, losses, color=colour, alpha=0.5)
    for native in curve.native:
        axes.axhline(native.loss.mean, color=colour, linestyle="--", linewidth=1,
                     label=f"{curve.label}: native context of {native.size:,}")


def scaling(curves: Sequence[Curve]) -> Figure:
    """Loss by size of the memory, with intervals; native contexts as lines."""
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for number, curve in enumerate(curves):
        _draw_curve(axes, curve, COLOURS[number % len(COLOURS)])
    sizes = sorted({point.size for curve in curves for point in curve.points})
    least = min((size for size in sizes if size > 0), default=1)
    axes.set_xscale("symlog", base=2, linthresh=least)
    axes.set_xticks(sizes, [f"{size:,}" if size else "0 (sinks)" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="tokens of memory, beyond the window", ylabel="NLL (nats/token)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def svg(figure: Figure) -> str:
    """The element svg, to stand in an HTML page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg"):]


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes a file of the kind that its name ends in."""
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    figure.savefig(path, dpi=120, metadata=metadata)


def close(figure: Figure) -> None:
    plt.close(figure)
