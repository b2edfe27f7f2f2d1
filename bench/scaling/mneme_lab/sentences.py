# SPDX-License-Identifier: Apache-2.0
"""What a curve says, in plain sentences."""
from __future__ import annotations

import itertools

from mneme_lab import bootstrap
from mneme_lab.bootstrap import Interval
from mneme_lab.curves import Curve, Point


def interval(value: Interval) -> str:
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def _native(curve: Curve, native: Point, below: Interval) -> str:
    best = min(curve.points, key=lambda point: point.loss.mean)
    said = (f"The best memory, {best.size:,} tokens, against the model's own context of {native.size:,} tokens: its "
            f"loss is ")
    if below.low > 0:
        return said + f"{interval(below)} nats a token below."
    if below.high < 0:
        return said + f"{interval(Interval(-below.mean, -below.high, -below.low))} nats a token above."
    return said + f"the same within the interval ({interval(below)} below)."


def describe(curve: Curve) -> list[str]:
    """Sentences on one curve."""
    said = [f"{curve.label}: {curve.scored:,} tokens are scored; intervals are 95 % of a bootstrap over blocks of "
            f"{bootstrap.block_of(curve.scored)} tokens."]
    first, last = curve.points[0], curve.points[-1]
    if last.gain is not None and first.size > 0:
        said.append(f"With {last.size:,} tokens of memory the loss is {interval(last.gain)} nats a token below that "
                    f"without one.")
    elif last.gain is not None:
        said.append(f"From no memory to {last.size:,} tokens the loss falls by {interval(last.gain)} nats a token, the "
                    f"perplexity from {first.perplexity:.2f} to {last.perplexity:.2f}.")
    for (before, after), step in zip(itertools.pairwise(curve.points), curve.steps, strict=True):
        if step.low <= 0:
            way = "rises" if step.high < 0 else "does not fall beyond chance"
            said.append(f"From {before.size:,} to {after.size:,} tokens the loss {way} ({interval(step)}).")
    if curve.steps and all(step.low > 0 for step in curve.steps):
        said.append("Every step to a larger memory lowers the loss beyond chance.")
    if curve.law is not None:
        law = curve.law
        said.append(f"The law {law.floor:.3f} + {law.scale:.3g} (M + {law.offset:g})^-{law.gamma:.3f} fits the "
                    f"{len(curve.points)} points with R² = {law.r_squared:.4f}.")
    for native, below in zip(curve.native, curve.below_native, strict=True):
        said.append(_native(curve, native, below))
    return said
