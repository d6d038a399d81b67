"""The token embedding table, memory-mapped: rows are looked up on the host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput

__all__ = ["TokenEmbedding"]


class TokenEmbedding:
    """(V, D) rows in the bundle's precision, handed out as float32."""

    def __init__(self, path: Path, vocabulary: int, width: int, dtype: str) -> None:
        self._table = np.memmap(path, dtype=dtype, mode="r", shape=(vocabulary, width))

    def rows(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """(len(ids), D). Raises BadInput for an id outside the vocabulary."""
        index = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = index[(index < 0) | (index >= len(self._table))]
        if outside.size:
            raise BadInput(f"token id {outside[0]} is outside the vocabulary; expected 0 to {len(self._table) - 1}")
        return np.asarray(self._table[index], dtype=np.float32)
