"""The description of a tensor in the files of a checkpoint, before its values are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["OPAQUE", "StoredTensor", "stored_tensor"]

# Stands for a type that NumPy does not have: such a tensor is listed, and refused only where a model needs it.
OPAQUE: np.dtype[Any] = np.dtype(np.void)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as described by a header; `begin` counts from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    stored_as: str  # the type, for messages

    @property
    def is_opaque(self) -> bool:
        """Whether its values cannot be read."""
        return self.dtype == OPAQUE

    @property
    def size_bytes(self) -> int:
        """Bytes in the file, for a type with whole bytes per value."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensor(dtype: np.dtype[Any], shape: tuple[int, ...], begin: int, code: str) -> StoredTensor:
    """A tensor whose type is shown by NumPy's name, or by the file's `code` where NumPy has none."""
    return StoredTensor(dtype, shape, begin, code if dtype == OPAQUE else str(dtype))
