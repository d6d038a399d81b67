"""The NumPy types of the names in `numerics.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["numpy_type"]


def numpy_type(name: str) -> np.dtype[Any]:
    """The NumPy type of a name in NUMBER_TYPES. ml_dtypes, a dependency of onnx, is imported only for types that NumPy
    lacks."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found
