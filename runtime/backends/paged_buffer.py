"""A cache in blocks of 32 rows, as paged attention of OpenVINO reads and writes it in place.

A block holds its rows for all heads. Every sequence owns the same number of blocks, one after the other, so that some
sequences of a batch are a view. Knows no library and no graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.host_buffer import HostBuffer
from sdrpn.runtime.backends.runner import Array, Buffer

__all__ = ["BLOCK_ROWS", "PagedBuffer", "block_count"]

BLOCK_ROWS = 32  # the only number of rows that OpenVINO's CPU plugin takes


def block_count(rows: int) -> int:
    """The blocks that hold this many rows."""
    return -(-rows // BLOCK_ROWS)


class PagedBuffer:
    """(B,heads,rows,width) in pages (B*blocks,heads,32,width)."""

    def __init__(self, pages: Array, entries: int, rows: int, memory: HostBuffer | None = None) -> None:
        """Args: memory: what the pages are the beginning of, which may be larger"""
        self.pages, self._entries, self._rows = pages, entries, rows
        self._memory = memory

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> PagedBuffer:
        """Allocate for a cache (B,heads,rows,width)."""
        entries, heads, rows, width = shape
        memory = HostBuffer.zeros((entries * block_count(rows), heads, BLOCK_ROWS, width), dtype)
        return cls(memory.array, entries, rows, memory)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every axis, as of a cache in one piece."""
        _, heads, _, width = self.pages.shape
        return self._entries, heads, self._rows, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.pages.dtype

    @property
    def blocks(self) -> int:
        """Blocks of one sequence."""
        return block_count(self._rows)

    def rows(self, start: int, stop: int) -> PagedBuffer:
        """Refused: no cache is cut along its heads."""
        raise RunFailed(f"a cache in pages {self.shape} has no view of {start}:{stop} along its second axis")

    def entries(self, start: int, stop: int) -> PagedBuffer:
        """A view of (start:stop, ...)."""
        return PagedBuffer(self.pages[start * self.blocks : stop * self.blocks], stop - start, self._rows)

    def write(self, array: Array) -> None:
        """Copy an array (B,heads,rows,width) into the pages."""
        self.copy_rows(HostBuffer(array), self._rows)

    def fill(self, fill: Callable[[Array], None]) -> None:
        """See `Buffer.fill`; through a copy."""
        array = np.zeros(self.shape, self.dtype)
        fill(array)
        self.write(array)

    def read(self) -> Array:
        """A copy in one piece."""
        entries, heads, rows, width = self.shape
        joined = self._by_entry().swapaxes(1, 2).reshape(entries, heads, self.blocks * BLOCK_ROWS, width)
        return joined[:, :, :rows]

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """See `Buffer.copy_rows`."""
        if isinstance(source, PagedBuffer) and start == 0:
            whole, rest = divmod(rows, BLOCK_ROWS)
            target, other = self._by_entry(), source._by_entry()
            target[:, :whole] = other[:, :whole]
            if rest:
                target[:, whole, :, :rest] = other[:, whole, :, :rest]
            return
        array, target = source.read(), self._by_entry()
        done = 0
        while done < rows:
            block, first = divmod(start + done, BLOCK_ROWS)
            count = min(BLOCK_ROWS - first, rows - done)
            target[:, block, :, first : first + count] = array[:, :, done : done + count]
            done += count

    def with_rows(self, rows: int, keep: int) -> PagedBuffer:
        """See `Buffer.with_rows`. The blocks of a single sequence stay where they are, where the memory is enough."""
        entries, heads, _, width = self.shape
        shape = (entries * block_count(rows), heads, BLOCK_ROWS, width)
        size = int(np.prod(shape))
        memory = self._memory
        if memory is not None and entries == 1 and size <= memory.array.size <= 4 * max(size, 1):
            return PagedBuffer(memory.array.reshape(-1)[:size].reshape(shape), entries, rows, memory)
        new = PagedBuffer.zeros((entries, heads, rows, width), self.dtype)
        new.copy_rows(self, keep)
        return new

    def _by_entry(self) -> Array:
        """(B,blocks,heads,32,width)."""
        return self.pages.reshape(self._entries, self.blocks, *self.pages.shape[1:])
