"""A buffer in ordinary memory: a NumPy array that a library on the CPU reads and writes in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from sdrpn.runtime.runner import Array, Buffer

__all__ = ["HostBuffer"]


class HostBuffer:
    """Owns nothing but a reference to its array."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every axis."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.array.dtype

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return int(self.array.ctypes.data)

    def rows(self, start: int, stop: int) -> HostBuffer:
        """A view of (1, start:stop, ...)."""
        return HostBuffer(self.array[:, start:stop])

    def write(self, array: Array) -> None:
        """Copy in."""
        np.copyto(self.array, array, casting="same_kind")

    def read(self) -> Array:
        """The array itself: the next run overwrites it."""
        return self.array

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """See `Buffer.copy_rows`."""
        self.array[..., start : start + rows, :] = source.read()[..., :rows, :]
