"""What the files of a checkpoint say about a tensor before its numbers are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["OPAQUE", "StoredTensor", "stored_tensor"]

# In place of a type that NumPy has no numbers of: such a tensor is listed, and refused where a model needs it.
OPAQUE: np.dtype[Any] = np.dtype(np.void)


@dataclass(frozen=True)
class StoredTensor:
    """What a header says about one tensor; `begin` counts from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    stored_as: str  # the type, for messages

    @property
    def is_opaque(self) -> bool:
        """Whether its numbers cannot be read."""
        return self.dtype == OPAQUE

    @property
    def size_bytes(self) -> int:
        """Bytes in the file, for a type with whole bytes a number."""
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensor(dtype: np.dtype[Any], shape: tuple[int, ...], begin: int, code: str) -> StoredTensor:
    """A tensor whose type goes by NumPy's name, or by the file's own `code` where NumPy has none."""
    return StoredTensor(dtype, shape, begin, code if dtype == OPAQUE else str(dtype))
