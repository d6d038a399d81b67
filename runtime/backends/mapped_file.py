"""Read a file sequentially through a memory map, without a copy in this process. Knows no TensorRT."""

from __future__ import annotations

import mmap
import os
from typing import BinaryIO

__all__ = ["MappedFile"]


class MappedFile:
    """A mapped file; reads return views, whose pages the system can reclaim at any time."""

    def __init__(self, stream: BinaryIO) -> None:
        """`stream`: open for reading; it may be closed earlier than this object."""
        size_bytes = os.fstat(stream.fileno()).st_size
        self._map = mmap.mmap(stream.fileno(), size_bytes, access=mmap.ACCESS_READ) if size_bytes else None
        self._position = 0

    def read(self, size_bytes: int) -> memoryview:
        """The next bytes; fewer at the end, then none."""
        if self._map is None:
            return memoryview(b"")
        piece = memoryview(self._map)[self._position : self._position + max(0, size_bytes)]
        self._position += len(piece)
        return piece
