"""The types of `numerics.py` as NumPy has them. Knows no tensors of a bundle."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["numpy_type"]


def numpy_type(name: str) -> np.dtype[Any]:
    """By the name in NUMBER_TYPES. ml_dtypes, which comes with onnx, is imported only for what NumPy lacks."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
