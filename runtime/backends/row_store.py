"""Copy new rows of keys and values into read-only caches, at a position stored in device memory.

A graph that does not update its caches itself outputs the new rows of each. One kernel copies all of them, and reads
their position from device memory, so that it can be part of a captured step. It is written in PTX, which the driver
compiles for its GPU: no compiler is needed on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Device

Table = npt.NDArray[np.int64]

__all__ = ["PTX", "RowCopies", "RowKernel", "RowStore", "row_table"]

_NAME = b"store_rows"
_THREADS = 128
# Columns of the table, 64 bits each, one row per cache. A block is contiguous in a cache: one head of one batch entry.
#   0 the cache's address        2 bytes from block to block in the cache    4 bytes of one row       6 blocks
#   1 the new rows' address      3 bytes from block to block of new rows     5 bytes to copy a block  7 blocks an entry
_COLUMNS = 8

# One block of threads for each block (x) of each cache (y):
#   cache = table[y]; if (x >= cache[6]) return;
#   target = cache[0] + x * cache[2] + starts[x / cache[7]] * cache[4]; source = cache[1] + x * cache[3];
#   for (i = thread; i < cache[5]; i += threads) target[i] = source[i];
PTX = """
.version 6.3
.target sm_75
.address_size 64

.visible .entry store_rows(
    .param .u64 table,
    .param .u64 starts
)
{
    .reg .pred %done;
    .reg .b16 %byte;
    .reg .u32 %r;
    .reg .u64 %cache, %start, %x, %y, %i, %threads, %bytes, %target, %source, %a, %b;

    ld.param.u64 %cache, [table];
    ld.param.u64 %start, [starts];
    cvta.to.global.u64 %cache, %cache;
    cvta.to.global.u64 %start, %start;
    mov.u32 %r, %ctaid.x;
    cvt.u64.u32 %x, %r;
    mov.u32 %r, %ctaid.y;
    cvt.u64.u32 %y, %r;
    mad.lo.u64 %cache, %y, 64, %cache;

    ld.global.u64 %a, [%cache+48];
    setp.ge.u64 %done, %x, %a;
    @%done bra FINISH;

    ld.global.u64 %target, [%cache];
    ld.global.u64 %a, [%cache+16];
    mad.lo.u64 %target, %x, %a, %target;
    ld.global.u64 %a, [%cache+56];
    div.u64 %b, %x, %a;
    mad.lo.u64 %start, %b, 8, %start;
    ld.global.u64 %b, [%start];
    ld.global.u64 %a, [%cache+32];
    mad.lo.u64 %target, %b, %a, %target;
    cvta.to.global.u64 %target, %target;

    ld.global.u64 %source, [%cache+8];
    ld.global.u64 %a, [%cache+24];
    mad.lo.u64 %source, %x, %a, %source;
    cvta.to.global.u64 %source, %source;

    ld.global.u64 %bytes, [%cache+40];
    mov.u32 %r, %tid.x;
    cvt.u64.u32 %i, %r;
    mov.u32 %r, %ntid.x;
    cvt.u64.u32 %threads, %r;
NEXT:
    setp.ge.u64 %done, %i, %bytes;
    @%done bra FINISH;
    add.u64 %a, %source, %i;
    ld.global.u8 %byte, [%a];
    add.u64 %a, %target, %i;
    st.global.u8 [%a], %byte;
    add.u64 %i, %i, %threads;
    bra NEXT;
FINISH:
    ret;
}
"""


class RowKernel:
    """The kernel, compiled by the driver for this GPU."""

    def __init__(self, cuda: Cuda) -> None:
        """Raises RunFailed where the driver cannot compile it."""
        self._cuda = cuda
        self._function = cuda.compile(PTX.encode() + b"\0", _NAME)

    def launch(self, table: int, starts: int, blocks: int, caches: int, stream: object) -> None:
        """Enqueue the kernel. Args: addresses of the table and of the entries' positions, and the grid size."""
        self._cuda.launch_kernel(self._function, (blocks, caches), _THREADS, (table, starts), stream)


class RowStore:
    """Stores all new rows of a step in one launch. Keeps the buffers alive, whose addresses are in the table."""

    def __init__(
        self,
        device: Device,
        kernel: RowKernel,
        caches: Sequence[DeviceBuffer],
        rows: Sequence[DeviceBuffer],
        start: DeviceBuffer,
    ) -> None:
        """Args: caches (B,H,length,width), each with its rows (B,H,S,width); start: int64 (B,) or (1,)."""
        self._device, self._kernel = device, kernel
        self._caches, self._rows, self._start = tuple(caches), tuple(rows), start
        table = row_table(caches, rows)
        self._blocks = int(table[:, 6].max(initial=0))
        self._table = DeviceBuffer.zeros(device, table.shape, "int64")
        self._table.write(table)

    def __call__(self) -> None:
        """Enqueue the kernel, after the work that writes the rows and the position."""
        if not self._blocks:
            return
        stream = self._device.stream
        self._kernel.launch(self._table.pointer, self._start.pointer, self._blocks, len(self._caches), stream.handle)
        stream.mark()
        for buffer in (*self._caches, *self._rows, self._start):
            buffer.used()
        for buffer in self._caches:
            buffer.changed()


class RowCopies:
    """`RowStore` without the kernel: a copy per cache and entry, enqueued with the positions known to the host."""

    def __init__(self, caches: Sequence[DeviceBuffer], rows: Sequence[DeviceBuffer], start: DeviceBuffer) -> None:
        """Args: as of `RowStore`; start: int64 (B,)"""
        self._start = start
        pairs = tuple(zip(caches, rows, strict=True))
        self._entries = [
            [(cache.entries(entry, entry + 1), new.entries(entry, entry + 1)) for cache, new in pairs]
            for entry in range(start.shape[0])
        ]

    def __call__(self) -> None:
        """Enqueue the copies."""
        for first, pairs in zip(self._start.host_values().tolist(), self._entries, strict=True):
            for cache, new in pairs:
                cache.copy_rows(new, new.shape[2], first)


def row_table(caches: Sequence[DeviceBuffer], rows: Sequence[DeviceBuffer]) -> Table:
    """The kernel's table, (caches, 8) int64: the columns above for each cache."""
    table = np.zeros((len(caches), _COLUMNS), np.int64)
    for entry, cache, new in zip(table, caches, rows, strict=True):
        batch, heads, length, width = cache.shape
        if new.shape[:2] != (batch, heads) or new.shape[3] != width or new.dtype != cache.dtype:
            here = f"{cache.dtype.name} {cache.shape}"
            raise RunFailed(f"rows of {new.dtype.name} {new.shape} do not fit a cache of {here}")
        row_bytes = width * cache.dtype.itemsize
        new_bytes = math.prod(new.shape[2:]) * cache.dtype.itemsize
        entry[:] = (
            cache.pointer,
            new.pointer,
            length * row_bytes,
            new_bytes,
            row_bytes,
            new_bytes,
            batch * heads,
            heads,
        )
    return table
