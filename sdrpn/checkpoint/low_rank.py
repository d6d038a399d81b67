"""Merge a low-rank change (LoRA, DoRA) into the matrix that it was trained on. NumPy only; knows no files.

r is the rank, (out, in) the matrix; for a convolution's kernel in = channels x height x width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LowRank", "merged"]

Array = NDArray[Any]


@dataclass(frozen=True)
class LowRank:
    """The tensors of an adapter that change one tensor of the model, and the scale of the change."""

    down: str | None  # A (r, in); for an embedding table (r, rows). None: only `up` is added, as for a bias
    up: str  # B (out, r); for an embedding table (width, r); for a bias (out,)
    scaling: float
    magnitude: str | None = None  # DoRA: (out,) norms of the rows of the merged matrix
    is_embedding: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors of the change."""
        return tuple(name for name in (self.down, self.up, self.magnitude) if name is not None)


def merged(weight: Array, down: Array | None, up: Array, change: LowRank, magnitude: Array | None = None) -> Array:
    """weight + scaling * up @ down (Hu et al. 2021), with rows scaled to `magnitude` (DoRA, Liu et al. 2024).

    Computed and returned in float32, or float64 where any operand is float64, so that storing it rounds only once.

    Args:
        weight: (out, in), (out, channels, height, width), an embedding table (rows, width), or a bias (out,)
        magnitude: (out,) or any shape of as many values
    """
    operands = [array for array in (weight, down, up, magnitude) if array is not None]
    exact = np.dtype(np.float64 if any(array.dtype == np.float64 for array in operands) else np.float32)
    scaling = np.asarray(change.scaling, exact)
    base, rise = weight.astype(exact), up.astype(exact)
    if down is None:
        shifted: Array = base + scaling * rise
        return shifted
    fall = down.astype(exact)
    product = rise.reshape(-1, fall.shape[0]) @ fall.reshape(fall.shape[0], -1)
    if change.is_embedding:
        product = product.T
    changed: Array = base + (product * scaling).reshape(base.shape)
    if magnitude is None:
        return changed
    rows = changed.reshape(len(changed), -1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a row of zeros becomes NaN, which the caller refuses
        factors = magnitude.astype(exact).reshape(-1, 1) / np.linalg.norm(rows, axis=1, keepdims=True)
        scaled: Array = (rows * factors).reshape(changed.shape)
    return scaled
