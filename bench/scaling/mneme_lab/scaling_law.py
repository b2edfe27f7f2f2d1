# SPDX-License-Identifier: Apache-2.0
"""The scaling law loss = C0 + C * (M + M0)^(-gamma) of a context of M tokens (arXiv 2502.01481)."""
from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize

GAMMA_GRID = np.geomspace(0.01, 4.0, 400)


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """The fitted numbers. floor is C0, scale is C, offset is M0 in tokens, r_squared the explained variance."""

    gamma: float
    scale: float
    floor: float
    offset: float
    r_squared: float

    def predict(self, tokens: ArrayLike) -> NDArray[np.float64]:
        """The loss that the law gives for contexts of so many tokens."""
        context = np.asarray(tokens, dtype=np.float64) + self.offset
        return np.asarray(self.floor + self.scale * context ** (-self.gamma), dtype=np.float64)


def _linear_fit(z: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float, float]:
    """Least squares of y = floor + scale * z: scale, floor, sum of squared residuals."""
    deviation = z - z.mean()
    spread = float(deviation @ deviation)
    scale = float(deviation @ (y - y.mean())) / spread if spread > 0 else 0.0
    floor = float(y.mean() - scale * z.mean())
    residual = y - floor - scale * z
    return scale, floor, float(residual @ residual)


def fit(tokens: ArrayLike, losses: ArrayLike, *, offset: float = 0.0) -> ScalingLaw:
    """Fits the law to losses at contexts of so many tokens; at least three distinct ones.

    For a given gamma the law is linear in the other two numbers. gamma is searched on a grid, then refined between the
    neighbours of the best one.
    """
    x, y = np.asarray(tokens, dtype=np.float64) + offset, np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(np.unique(x)) < 3:
        raise ValueError(f"tokens, losses: expected two lists of equal length with at least three distinct numbers of "
                         f"tokens, got shapes {x.shape} and {y.shape}")
    if x.min() <= 0:
        raise ValueError(f"tokens: expected tokens + offset above 0, got {x.min():g}")

    def residual(gamma: float) -> float:
        return _linear_fit(x ** (-gamma), y)[2]

    best = int(np.argmin([residual(float(gamma)) for gamma in GAMMA_GRID]))
    low, high = GAMMA_GRID[max(best - 1, 0)], GAMMA_GRID[min(best + 1, len(GAMMA_GRID) - 1)]
    refined = optimize.minimize_scalar(residual, bounds=(float(low), float(high)), method="bounded",
                                       options={"xatol": 1e-10})
    gamma = float(refined.x)
    scale, floor, squares = _linear_fit(x ** (-gamma), y)
    variance = float(((y - y.mean()) ** 2).sum())
    return ScalingLaw(gamma, scale, floor, offset, 1.0 - squares / variance if variance > 0 else 1.0)


def best_context(*, scale: float, gamma: float, growth: float, growth_power: float, data: float,
                 data_power: float) -> float:
    """The context at which scale * l^-gamma + growth * l^growth_power * data^-data_power is least.

    The second term is what a model that was trained on `data` tokens loses by contexts that are too long for it.
    """
    ratio = gamma * scale * data**data_power / (growth_power * growth)
    return float(ratio ** (1.0 / (growth_power + gamma)))
