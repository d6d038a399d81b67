"""Confidence intervals by paired bootstrap: the same questions are drawn for all methods. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.errors import BadInput

__all__ = ["LEVEL", "interval", "resampled_means"]

Floats = NDArray[np.floating[Any]]

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK = 250  # resamples at a time: their counts are in memory


def resampled_means(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """(n, M), one row per question -> (resamples, M): means over questions (whole rows) drawn with replacement.

    So differences and ratios of columns are paired.
    """
    if values.ndim != 2 or len(values) == 0:
        raise BadInput(f"values have the shape {values.shape}; expected (questions, methods), one question or more")
    rng = np.random.default_rng(seed)
    count = len(values)
    means = []
    for start in range(0, resamples, CHUNK):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(CHUNK, resamples - start))
        means.append(drawn @ values.astype(np.float64) / count)
    return np.concatenate(means)


def interval(estimates: Floats) -> tuple[float, float]:
    """The percentile interval at LEVEL of (resamples,) estimates."""
    low, high = np.quantile(estimates, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
