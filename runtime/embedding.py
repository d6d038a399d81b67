"""The token embedding table: rows are read from its file on demand.

Not memory-mapped: truncating a mapped file would crash the process.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.manifest import EMBEDDING_DTYPES
from sdrpn.errors import BadBundle, BadInput

__all__ = ["TokenEmbedding"]


class TokenEmbedding:
    """(V, D) rows in the bundle's precision, returned as float32. Several threads may read."""

    def __init__(self, path: Path, vocabulary: int, width: int, dtype: str) -> None:
        """Raises: BadBundle if the file has another size, or `dtype` is not one of EMBEDDING_DTYPES"""
        self._path, self._vocabulary, self._width = path, vocabulary, width
        if dtype not in EMBEDDING_DTYPES:
            raise BadBundle(
                f"{path} has the type {dtype!r} in the manifest; expected {' or '.join(EMBEDDING_DTYPES)}; export the "
                "bundle again"
            )
        self._dtype = np.dtype(dtype)
        self._row_bytes = width * self._dtype.itemsize
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes != vocabulary * self._row_bytes:
            self.close()
            raise BadBundle(
                f"{path} has {size_bytes} bytes; {vocabulary} rows of {width} {dtype} have "
                f"{vocabulary * self._row_bytes}; export the bundle again"
            )

    def rows(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """(len(ids), D). Raises BadInput for an id outside the vocabulary, BadBundle if the file was truncated
        since."""
        index = self.require(ids)
        size = self._row_bytes
        content = b"".join(os.pread(self._descriptor, size, size * row) for row in index.tolist())
        if len(content) != len(index) * size:
            raise BadBundle(f"{self._path} was truncated while it was open; export the bundle again and reopen it")
        return np.frombuffer(content, self._dtype).reshape(len(index), self._width).astype(np.float32)

    def require(self, ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """ids as an array. Raises BadInput for one outside the vocabulary."""
        index = np.asarray(ids, dtype=np.int64).reshape(-1)
        outside = index[(index < 0) | (index >= self._vocabulary)]
        if outside.size:
            raise BadInput(f"token id {outside[0]} is outside the vocabulary; expected 0 to {self._vocabulary - 1}")
        return index

    def close(self) -> None:
        """Close the file; calling it twice does no harm."""
        self._closing()

    def __enter__(self) -> TokenEmbedding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
