# SPDX-License-Identifier: Apache-2.0
"""The intrinsic dimension of a set of vectors, by the eigenvalues of their covariance (arXiv 2502.01481)."""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST_RATIO = 0.0035


def covariance_spectrum(vectors: ArrayLike) -> NDArray[np.float64]:
    """Eigenvalues of the covariance of vectors [n, dim], greatest first. [min(n, dim)]"""
    points = np.asarray(vectors, dtype=np.float64)
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(f"vectors: expected [n, dim] with n of at least 2, got shape {points.shape}")
    singular = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return np.asarray(singular**2 / (len(points) - 1), dtype=np.float64)


def dimension_of_spectrum(spectrum: ArrayLike, *, least_ratio: float = LEAST_RATIO) -> int:
    """The number of eigenvalues, given greatest first, above `least_ratio` of the greatest; 0 where all are zero."""
    values = np.asarray(spectrum, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or (np.diff(values) > 0).any():
        raise ValueError("spectrum: expected eigenvalues in one dimension, greatest first")
    if values[0] <= 0:
        return 0
    return int((values > least_ratio * values[0]).sum())


def intrinsic_dimension(vectors: ArrayLike, *, least_ratio: float = LEAST_RATIO) -> int:
    """The same of vectors [n, dim]."""
    return dimension_of_spectrum(covariance_spectrum(vectors), least_ratio=least_ratio)
