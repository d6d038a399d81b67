"""A buffer in host memory: a NumPy array that a library on the CPU reads and writes in place."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from sdrpn.runtime.backends.runner import Array, Buffer

__all__ = ["HostBuffer"]


# From this size on memory is mapped, and goes back to the system when it is freed. An allocator keeps what it gave:
# between caches that grow one after the other it would leave holes, up to a third of them.
_MAPPED_BYTES = 1 << 16
# From here on ask for large pages, since a cache is read from end to end: neighbours are one mapping to the system, so
# that it can give them also to caches that are smaller than two of these pages.
_HUGE_BYTES = 1 << 20


class HostBuffer:
    """A buffer around a NumPy array."""

    def __init__(self, array: Array, storage: Array | None = None) -> None:
        """`storage`: the memory of `array` from its first element on, which may be larger than the array."""
        self.array = array
        self._storage = array.reshape(-1) if storage is None and array.flags.c_contiguous else storage

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> HostBuffer:
        """Allocate. What is never written takes no memory where it is large."""
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if size_bytes < _MAPPED_BYTES:
            return cls(np.zeros(shape, dtype))
        return cls(np.frombuffer(_mapped(size_bytes), dtype).reshape(shape))

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

    def entries(self, start: int, stop: int) -> HostBuffer:
        """A view of (start:stop, ...)."""
        return HostBuffer(self.array[start:stop])

    def write(self, array: Array) -> None:
        """Copy an array into the buffer."""
        np.copyto(self.array, array, casting="same_kind")

    def fill(self, fill: Callable[[Array], None]) -> None:
        """See `Buffer.fill`; in place."""
        fill(self.array)

    def read(self) -> Array:
        """The array itself: the next run overwrites it."""
        return self.array

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """See `Buffer.copy_rows`."""
        self.array[..., start : start + rows, :] = source.read()[..., :rows, :]

    def with_rows(self, rows: int, keep: int) -> HostBuffer:
        """See `Buffer.with_rows`. New memory costs a page fault per 4 kB, so existing memory is reused where it can."""
        shape = (*self.shape[:-2], rows, self.shape[-1])
        size, storage = math.prod(shape), self._storage
        # The memory of a much longer sequence is released.
        if storage is None or not size <= storage.size <= 4 * size:
            new = HostBuffer.zeros(shape, self.dtype)
            new.copy_rows(self, keep)
            return new
        new = HostBuffer(storage[:size].reshape(shape), storage)
        _move_rows(self.array, new.array, keep)
        return new


def _mapped(size_bytes: int) -> mmap.mmap:
    """Zeros of this process alone. Raises MemoryError."""
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, size_bytes)
        found = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size_bytes} bytes cannot be allocated: {error.strerror}") from error
    if size_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            found.madvise(mmap.MADV_HUGEPAGE)
    return found


def _move_rows(old: Array, new: Array, keep: int) -> None:
    """Copy rows between two layouts of the same memory, in an order that overwrites nothing before it is read."""
    blocks = list(zip(_blocks(old), _blocks(new), strict=True))
    for source, target in reversed(blocks) if new.shape[-2] > old.shape[-2] else blocks:
        target[:keep] = source[:keep]


def _blocks(array: Array) -> Array:
    """(..., rows, width) -> (blocks, rows, width)."""
    return array.reshape(-1, *array.shape[-2:])
