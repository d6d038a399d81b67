"""A file that is read from its beginning to its end without a copy of it in this process. Knows no TensorRT."""

from __future__ import annotations

import mmap
import os
from typing import BinaryIO

__all__ = ["MappedFile"]


class MappedFile:
    """Reads give views of the mapped file: pages that the system takes back when it needs them."""

    def __init__(self, stream: BinaryIO) -> None:
        """`stream` is open for reading; it may be closed before this one goes."""
        size_bytes = os.fstat(stream.fileno()).st_size
        self._map = mmap.mmap(stream.fileno(), size_bytes, access=mmap.ACCESS_READ) if size_bytes else None
        self._position = 0

    def read(self, size_bytes: int) -> memoryview:
        """The next bytes: fewer at the end, and then none."""
        if self._map is None:
            return memoryview(b"")
        piece = memoryview(self._map)[self._position : self._position + max(0, size_bytes)]
        self._position += len(piece)
        return piece
