"""Memory of a GPU and pinned memory beside it, with the one stream that everything is enqueued on. Knows no TensorRT.

Who drops the last reference to a block gives it back. Because there is one stream, a block of the device may be handed
out again at once: what uses it next is enqueued behind what used it before. Memory goes back to CUDA only after the
stream was waited for, so nothing is freed while the stream may use it.
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

# TensorRT wants its working memory to begin at a multiple of this; cudaMalloc's does.
_ROUNDING = 256
# A block is used again for something as small as a fourth of it.
_MOST_WASTE = 4
# What is given back beyond this goes back to CUDA.
_KEPT_BYTES = 256 << 20


class Stream:
    """Work in order; marks tell how much of it is known to be done."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.handle = cuda.create_stream()
        self._enqueued = self._done = 0
        self._close = weakref.finalize(self, _destroy, cuda, self.handle)

    @property
    def address(self) -> int:
        """As TensorRT takes it."""
        return int(self.handle)

    @property
    def now(self) -> int:
        """The mark of what was enqueued last."""
        return self._enqueued

    def mark(self) -> int:
        """To be called after something was enqueued; `wait` with what it gives waits for that."""
        self._enqueued += 1
        return self._enqueued

    def reached(self, mark: int) -> bool:
        """Whether what was enqueued up to the mark is known to be done, without a question to CUDA."""
        return mark <= self._done

    def wait(self, mark: int) -> None:
        """Until what was enqueued up to the mark is done."""
        if not self.reached(mark):
            self.synchronize()

    def synchronize(self) -> None:
        """Until everything is done."""
        enqueued = self._enqueued
        self._cuda.synchronize(self.handle)
        self._done = enqueued


@dataclass(frozen=True)
class _Free:
    pointer: int
    size_bytes: int
    mark: int  # of what may still use it


class Block:
    """A piece of memory. Given back when the last reference goes."""

    def __init__(self, pool: Pool, pointer: int, size_bytes: int) -> None:
        self.pointer, self.size_bytes = pointer, size_bytes
        weakref.finalize(self, pool._give_back, pointer, size_bytes)


class Pool:
    """Blocks of one kind of memory, used again where that is safe.

    The garbage collector may give a block back at any moment, also half-way through a method here or while a graph is
    captured. So that does nothing but write it down; `take` and `trim` do the rest.
    """

    def __init__(
        self, stream: Stream, allocate: Callable[[int], int], free: Callable[[int], None], *, touched_by_host: bool
    ) -> None:
        """`touched_by_host`: the host writes it at once, so that a block may be used again only when it is idle."""
        self._stream, self._allocate, self._free = stream, allocate, free
        self._touched_by_host = touched_by_host
        self._given_back: deque[_Free] = deque()  # appending to it and popping from it cannot be interrupted
        self._idle: list[_Free] = []
        self._closed = False

    def take(self, size_bytes: int) -> Block:
        """A block of at least so many bytes, not cleared. Raises RunFailed where there is no memory."""
        size_bytes = -(-max(size_bytes, 1) // _ROUNDING) * _ROUNDING
        self._collect()
        if sum(one.size_bytes for one in self._idle) > _KEPT_BYTES:
            self.trim()
        found = self._fitting(size_bytes)
        if found is None:
            return Block(self, self._new(size_bytes), size_bytes)
        self._idle.remove(found)
        return Block(self, found.pointer, found.size_bytes)

    def trim(self) -> None:
        """Give CUDA back what nobody uses."""
        self._collect()
        if not self._idle:
            return
        self._stream.synchronize()
        while self._idle:
            self._free(self._idle.pop().pointer)

    def close(self) -> None:
        """From now on everything goes back to CUDA at once."""
        self._closed = True
        with suppress(RunFailed):  # as below
            self.trim()

    def _fitting(self, size_bytes: int) -> _Free | None:
        """The smallest that is large enough and may be used at once."""
        fitting = (
            one
            for one in self._idle
            if size_bytes <= one.size_bytes <= _MOST_WASTE * size_bytes
            # To wait for one would keep the GPU waiting afterwards; another block costs little.
            and (not self._touched_by_host or self._stream.reached(one.mark))
        )
        return min(fitting, key=lambda one: one.size_bytes, default=None)

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
        if self._closed:  # nothing will be taken any more
            # After a fault of the GPU every call fails; whoever asked for something was told.
            with suppress(RunFailed):
                self.trim()


def available_memory(cuda: Cuda, facts: CudaDevice) -> int | None:
    """Bytes that can still be taken on the device; None where nobody can tell.

    A GPU that shares the system's memory can have what the system keeps of files, which CUDA does not count as free
    (CUDA's documentation of cudaMemGetInfo).
    """
    free = cuda.free_memory()
    if not facts.integrated:
        return free
    told = [size for size in (free, read_available_memory()) if size is not None]
    return max(told, default=None)


class Device:
    """One GPU: its stream, its memory, and pinned memory of the host."""

    def __init__(self, cuda: Cuda) -> None:
        """Raises RunFailed where there is none, or its driver is too old; BadInput where there are only others."""
        self.cuda = cuda
        self.facts: CudaDevice = cuda.describe_device()
        self.stream = Stream(cuda)
        self.memory = Pool(self.stream, cuda.allocate, cuda.free, touched_by_host=False)
        self.pinned = Pool(self.stream, cuda.allocate_host, cuda.free_host, touched_by_host=True)
        for pool in (self.memory, self.pinned):
            weakref.finalize(self, pool.close)

    def trim(self) -> None:
        """Give CUDA back what nobody uses."""
        self.memory.trim()
        self.pinned.trim()

    @property
    def maps_host_memory(self) -> bool:
        """Whether the GPU works in the host's memory anyway, so that copies to and fro are for nothing."""
        return self.facts.integrated


def _destroy(cuda: Cuda, handle: object) -> None:
    with suppress(RunFailed):  # after a fault of the GPU there is nothing left to destroy
        cuda.synchronize(handle)
        cuda.destroy_stream(handle)
