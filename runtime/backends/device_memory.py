"""GPU memory and pinned host memory, with the single stream that all work is enqueued on. Knows no TensorRT.

A block is released with its last reference. Because there is one stream, a device block can be reused at once: its next
use is enqueued after the previous one. Memory is returned to CUDA only after waiting for the stream, so nothing is
freed while the stream may use it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sdrpn.errors import RunFailed
from sdrpn.host.machine import read_available_memory
from sdrpn.runtime.backends.cuda import Cuda, CudaDevice, CudaFault

__all__ = ["Block", "Device", "Pool", "Stream", "available_memory"]

# Required alignment of TensorRT's working memory; that of cudaMalloc's is sufficient.
_ROUNDING = 256
# A block is reused for requests of at least a fourth of its size.
_MOST_WASTE = 4
# Released memory beyond this is returned to CUDA.
_KEPT_BYTES = 256 << 20


class Stream:
    """A stream of ordered work; marks record how much of it is known to be done."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = cuda.create_stream()
        self._enqueued = self._done = 0
        self._close = weakref.finalize(self, _destroy, cuda, self.handle)

    @property
    def address(self) -> int:
        """The address of the stream, for TensorRT."""
        return int(self.handle)

    @property
    def now(self) -> int:
        """The mark of the work enqueued last."""
        return self._enqueued

    def mark(self) -> int:
        """A new mark, to be set after enqueuing work; `wait` waits for it."""
        self._enqueued += 1
        return self._enqueued

    def reached(self, mark: int) -> bool:
        """Whether work up to the mark is known to be done, without asking CUDA."""
        return mark <= self._done

    def wait(self, mark: int) -> None:
        """Wait until work up to the mark is done."""
        if not self.reached(mark):
            self.synchronize()

    def synchronize(self) -> None:
        """Wait until all work is done."""
        enqueued = self._enqueued
        self._cuda.synchronize(self.handle)
        self._done = enqueued


@dataclass(frozen=True)
class _Free:
    pointer: int
    size_bytes: int
    mark: int  # of work that may still use it


class Block:
    """A block of memory, released with its last reference."""

    def __init__(self, pool: Pool, pointer: int, size_bytes: int) -> None:
        self.pointer, self.size_bytes = pointer, size_bytes
        weakref.finalize(self, pool._give_back, pointer, size_bytes)


class Pool:
    """A pool of blocks of one kind of memory, reused where that is safe.

    The garbage collector may release a block at any moment, even in the middle of a method here or while a graph is
    captured. So a release only records the block; `take` and `trim` do the rest.
    """

    def __init__(
        self, stream: Stream, allocate: Callable[[int], int], free: Callable[[int], None], *, touched_by_host: bool
    ) -> None:
        """`touched_by_host`: the host writes it immediately, so a block can be reused only when it is idle."""
        self._stream, self._allocate, self._free = stream, allocate, free
        self._touched_by_host = touched_by_host
        self._given_back: deque[_Free] = deque()  # append and pop are atomic
        self._idle: list[_Free] = []
        self._closed = False

    def take(self, size_bytes: int) -> Block:
        """A block of at least `size_bytes`, not cleared. Raises RunFailed where memory is exhausted."""
        size_bytes = -(-max(size_bytes, 1) // _ROUNDING) * _ROUNDING
        self._collect()
        if sum(block.size_bytes for block in self._idle) > _KEPT_BYTES:
            self.trim()
        found = self._fitting(size_bytes)
        if found is None:
            return Block(self, self._new(size_bytes), size_bytes)
        self._idle.remove(found)
        return Block(self, found.pointer, found.size_bytes)

    def trim(self) -> None:
        """Return unused memory to CUDA."""
        self._collect()
        if not self._idle:
            return
        self._stream.synchronize()
        while self._idle:
            self._free(self._idle.pop().pointer)

    def close(self) -> None:
        """From now on, all released memory is returned to CUDA at once."""
        self._closed = True
        with suppress(RunFailed):  # as below
            self.trim()

    def _fitting(self, size_bytes: int) -> _Free | None:
        """The smallest block that is large enough and can be reused at once."""
        fitting = (
            block
            for block in self._idle
            if size_bytes <= block.size_bytes <= _MOST_WASTE * size_bytes
            # Waiting for a block would stall the GPU afterwards; another block costs little.
            and (not self._touched_by_host or self._stream.reached(block.mark))
        )
        return min(fitting, key=lambda block: block.size_bytes, default=None)

    def _new(self, size_bytes: int) -> int:
        try:
            return self._allocate(size_bytes)
        except CudaFault:
            raise
        except RunFailed:
            if not self._idle:
                raise
            self.trim()
            return self._allocate(size_bytes)

    def _collect(self) -> None:
        while self._given_back:
            self._idle.append(self._given_back.popleft())

    def _give_back(self, pointer: int, size_bytes: int) -> None:
        self._given_back.append(_Free(pointer, size_bytes, self._stream.now))
        if self._closed:  # no further blocks will be requested
            # After a GPU fault every call fails; the error was raised where it occurred.
            with suppress(RunFailed):
                self.trim()


def available_memory(cuda: Cuda, facts: CudaDevice) -> int | None:
    """Bytes that can be allocated on the device; None where that is unknown.

    A GPU that shares memory with the CPU can also use memory of the file cache, which CUDA does not count as free
    (CUDA's documentation of cudaMemGetInfo).
    """
    free = cuda.free_memory()
    if not facts.integrated:
        return free
    reported = [size for size in (free, read_available_memory()) if size is not None]
    return max(reported, default=None)


class Device:
    """One GPU: its stream, its memory, and pinned memory of the host."""

    def __init__(self, cuda: Cuda) -> None:
        """Raises BadInput where the GPU does not exist, RunFailed where the driver is missing or too old."""
        self.cuda = cuda
        self.facts: CudaDevice = cuda.describe_device()
        self.stream = Stream(cuda)
        self.memory = Pool(self.stream, cuda.allocate, cuda.free, touched_by_host=False)
        self.pinned = Pool(self.stream, cuda.allocate_host, cuda.free_host, touched_by_host=True)
        for pool in (self.memory, self.pinned):
            weakref.finalize(self, pool.close)
        self.launches = 0  # of captured graphs, each of which may have written any buffer

    def trim(self) -> None:
        """Return unused memory to CUDA."""
        self.memory.trim()
        self.pinned.trim()

    @property
    def maps_host_memory(self) -> bool:
        """Whether the GPU can work directly in host memory, so that copies are not needed."""
        return self.facts.integrated


def _destroy(cuda: Cuda, handle: object) -> None:
    with suppress(RunFailed):  # after a GPU fault there is nothing left to destroy
        cuda.synchronize(handle)
        cuda.destroy_stream(handle)
