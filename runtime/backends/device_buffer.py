"""A buffer on the GPU, with pinned memory for transfers from and to the host. Knows no TensorRT.

Tensors are exchanged with other libraries (pycuda, CuPy, torch) through `__cuda_array_interface__`, without a copy.
Pending work on a tensor is waited for when it is wrapped. Not all libraries wait in turn when they read a buffer: see
`DeviceBuffer.__cuda_array_interface__`.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdrpn.errors import BadInput, RunFailed
from sdrpn.runtime.backends.device_memory import Block, Device
from sdrpn.runtime.backends.runner import Array, Buffer, nbytes

__all__ = ["DeviceBuffer"]

_ALIGNMENT = 256  # required for every tensor address in TensorRT: setTensorAddress, NvInferRuntime.h of 10.3 to 11.1


@dataclass
class _Use:
    """The use of memory by the device, shared by a buffer and its views."""

    mark: int = 0  # work enqueued up to this mark may use it
    by_others: bool = False  # another library has the address, so any work may use it


class DeviceBuffer:
    """Contiguous memory of the device; views share their owner's. All copies are enqueued on the device's stream."""

    def __init__(
        self,
        device: Device,
        owner: object,
        pointer: int,
        shape: tuple[int, ...],
        dtype: Any,
        host: Block | None = None,
        use: _Use | None = None,
    ) -> None:
        """Use `zeros` or `wrapping`.

        Args:
            owner: kept alive as long as this buffer
            host: pinned memory; where `pointer` is its device address, nothing is copied
            use: the use of the buffer that this is a view of
        """
        self._device, self._owner, self._host = device, owner, host
        self.pointer, self.shape, self.dtype = pointer, shape, np.dtype(dtype)
        self._mapped = host is not None
        self._use = use or _Use()
        self._host_mark = 0  # mark of the last copy from or to the pinned memory
        self._deferred = False  # the caller that runs the graph uploads it
        self._downloaded_at: int | None = None  # the device's `launches` when the pinned memory was up to date

    @classmethod
    def zeros(cls, device: Device, shape: tuple[int, ...], dtype: str, *, for_host: bool = False) -> DeviceBuffer:
        """A buffer of zeros.

        Args:
            for_host: the host accesses it often: on a GPU that shares the host's memory it is allocated there
        """
        size_bytes = nbytes(shape, dtype)
        if for_host and device.maps_host_memory:
            host = device.pinned.take(size_bytes)
            ctypes.memset(host.pointer, 0, size_bytes)
            return cls(device, host, device.cuda.device_pointer(host.pointer), shape, dtype, host)
        block = device.memory.take(size_bytes)
        if size_bytes:
            device.cuda.clear(block.pointer, size_bytes, device.stream.handle)
            device.stream.mark()
        return cls(device, block, block.pointer, shape, dtype)

    @classmethod
    def wrapping(cls, device: Device, tensor: Any) -> DeviceBuffer:
        """Wrap another library's tensor, which is kept alive; waits for pending work on it.

        Raises: BadInput for something that is not a contiguous tensor of this GPU
        """
        interface = getattr(tensor, "__cuda_array_interface__", None)
        if interface is None:
            raise BadInput(f"{type(tensor).__name__} has no __cuda_array_interface__; expected a tensor on the GPU")
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        if interface.get("strides") not in (None, _strides(shape, dtype.itemsize)):
            raise BadInput(f"the tensor's strides are {interface['strides']}; expected a contiguous one")
        if interface.get("mask") is not None:
            raise BadInput("the tensor has a mask; expected one without")
        pointer = int(interface["data"][0])
        if math.prod(shape):
            _require_place(device, pointer, dtype)
        _wait_for_producer(device, interface)
        return cls(device, tensor, pointer, shape, dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; readers must wait for the given stream.

        CuPy and Numba do so. torch does not, and pycuda cannot: call `synchronize` before they read.
        """
        self._use.by_others = True
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": self._device.stream.address,
        }

    def synchronize(self) -> None:
        """Wait until all enqueued work is done, so that any library can read the buffer on any stream."""
        self._device.stream.synchronize()

    @property
    def aligned(self) -> bool:
        """Whether its address has the alignment that TensorRT requires."""
        return self.pointer % _ALIGNMENT == 0

    @property
    def beginning(self) -> object:
        """A key shared by views that start at the same address of the same memory."""
        return self.pointer, self.size_bytes

    @property
    def size_bytes(self) -> int:
        """Size of all elements in bytes."""
        return nbytes(self.shape, self.dtype.name)

    def rows(self, start: int, stop: int) -> DeviceBuffer:
        """A view of (1, start:stop, ...)."""
        if self.shape[0] != 1:
            raise RunFailed(f"rows of a buffer of shape {self.shape} are not contiguous; use one entry of it")
        row_bytes = math.prod(self.shape[2:]) * self.dtype.itemsize
        return self._view(start * row_bytes, (1, stop - start, *self.shape[2:]))

    def entries(self, start: int, stop: int) -> DeviceBuffer:
        """See `Buffer.entries`."""
        entry_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._view(start * entry_bytes, (stop - start, *self.shape[1:]))

    def write(self, array: Array) -> None:
        """Write an array through the pinned memory, or a GPU tensor directly."""
        if hasattr(array, "__cuda_array_interface__"):
            self._copy_whole(DeviceBuffer.wrapping(self._device, array))
        else:
            self.fill(lambda target: np.copyto(target, array, casting="same_kind"))

    def fill(self, fill: Callable[[Array], None]) -> None:
        """See `Buffer.fill`; writes to the pinned memory, after waiting for the last copy from it."""
        target = self._pinned()
        self._device.stream.wait(self._last_use if self._mapped else self._host_mark)
        fill(target)
        self._downloaded_at = None
        if not self._deferred:
            self.upload()

    def compute(self, enqueue: Callable[[Device, int], None]) -> None:
        """Let kernels write the whole buffer: `enqueue` gets the device, whose stream they use, and the address."""
        enqueue(self._device, self.pointer)
        self._device.stream.mark()
        self.used()
        self._downloaded_at = None

    def read(self) -> Array:
        """Device to host, after all enqueued work; the next read or run overwrites the result."""
        source = self._pinned()
        if self._downloaded_at != self._device.launches:
            self.download()
        self._device.stream.synchronize()
        return source

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """See `Buffer.copy_rows`; on the device, after work that was enqueued before."""
        if not isinstance(source, DeviceBuffer):
            raise RunFailed(f"rows come from a {type(source).__name__}; expected a buffer of the same device")
        row_bytes = self.shape[-1] * self.dtype.itemsize
        blocks, width = math.prod(self.shape[:-2]), rows * row_bytes
        if not blocks or not width:
            return
        self._device.cuda.copy_blocks(
            self.pointer + start * row_bytes,
            self.shape[-2] * row_bytes,
            source.pointer,
            source.shape[-2] * row_bytes,
            width,
            blocks,
            self._device.stream.handle,
        )
        self._device.stream.mark()
        self.used()
        source.used()
        self._downloaded_at = None

    def copy_from(self, source: DeviceBuffer) -> None:
        """Enqueue a copy of a whole buffer of equal size."""
        if self.size_bytes:
            self._device.cuda.copy(self.pointer, source.pointer, self.size_bytes, self._device.stream.handle)
            self._device.stream.mark()
        self.used()
        source.used()
        self._downloaded_at = None

    def with_rows(self, rows: int, keep: int) -> DeviceBuffer:
        """See `Buffer.with_rows`."""
        shape = (*self.shape[:-2], rows, self.shape[-1])
        new = DeviceBuffer.zeros(self._device, shape, self.dtype.name)
        new.copy_rows(self, keep)
        return new

    def empty_like(self) -> DeviceBuffer:
        """A new buffer of the same size, not cleared."""
        block = self._device.memory.take(self.size_bytes)
        return DeviceBuffer(self._device, block, block.pointer, self.shape, self.dtype)

    def host_values(self) -> Array:
        """What the host wrote last; the next write overwrites it."""
        return self._pinned()

    def defer(self) -> None:
        """From now on, writes stay in the pinned memory until `upload`, whose addresses never change."""
        self._pinned()
        self._deferred = True

    def upload(self) -> None:
        """Enqueue host to device; does nothing where they share memory."""
        if not self._mapped and self.size_bytes:
            host = self._pinned_block().pointer
            self._device.cuda.copy(self.pointer, host, self.size_bytes, self._device.stream.handle)
        self.uploaded()

    def uploaded(self) -> None:
        """Record that an upload was enqueued, here or as part of a captured graph."""
        self._host_mark = self._device.stream.mark()
        self.used()

    def download(self) -> None:
        """Enqueue device to host; does nothing where they share memory."""
        if not self._mapped and self.size_bytes:
            host = self._pinned_block().pointer
            self._device.cuda.copy(host, self.pointer, self.size_bytes, self._device.stream.handle)
        self.downloaded()

    def downloaded(self) -> None:
        """Record that a download was enqueued after all changes, here or as part of a captured graph."""
        self._host_mark = self._device.stream.mark()
        self.used()
        self._downloaded_at = self._device.launches

    def changed(self) -> None:
        """Record that a graph is about to write it."""
        self._downloaded_at = None

    def used(self) -> None:
        """Record that work that reads or writes it was enqueued and marked."""
        self._use.mark = self._device.stream.now

    @property
    def _last_use(self) -> int:
        return self._device.stream.now if self._use.by_others else self._use.mark

    def _copy_whole(self, source: DeviceBuffer) -> None:
        if (source.shape, source.dtype) != (self.shape, self.dtype):
            raise BadInput(f"the tensor is {source.dtype.name} {source.shape}; expected {self.dtype.name} {self.shape}")
        self.copy_from(source)
        self._device.stream.wait(self._device.stream.now)  # afterwards the other library may overwrite its tensor

    def _view(self, offset_bytes: int, shape: tuple[int, ...]) -> DeviceBuffer:
        return DeviceBuffer(self._device, self._owner, self.pointer + offset_bytes, shape, self.dtype, use=self._use)

    def _pinned_block(self) -> Block:
        if self._host is None:
            self._host = self._device.pinned.take(self.size_bytes)
        return self._host

    def _pinned(self) -> Array:
        """The pinned memory as an array, which keeps it alive."""
        return np.asarray(_HostView(self._pinned_block(), self.shape, self.dtype))


class _HostView:
    """Memory for a NumPy array that keeps the block alive."""

    def __init__(self, block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.block = block
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (block.pointer, False),
            "version": 3,
        }


def _require_place(device: Device, pointer: int, dtype: np.dtype[Any]) -> None:
    """Raises BadInput for a misaligned address, or one that the GPU cannot access."""
    if pointer % dtype.itemsize:
        raise BadInput(f"the tensor begins at {pointer:#x}, inside an element; expected a multiple of {dtype.itemsize}")
    place, ours = device.cuda.device_of(pointer), device.cuda.device_id
    if place is None:
        raise BadInput(f"the tensor at {pointer:#x} is in the host's memory; expected a tensor on the GPU")
    if place != ours:
        raise BadInput(f"the tensor is on device {place}; expected one on device {ours}, where this session runs")


def _wait_for_producer(device: Device, interface: Mapping[str, Any]) -> None:
    """Wait until the work that fills the tensor is done.

    The interface may name the stream to wait for. torch's interface, version 2, has no stream, and pycuda's is None:
    then the work may be on any stream, so all streams are waited for.
    """
    producer = interface.get("stream")
    if producer is None or int(producer) == 0:  # 0: forbidden in version 3, because it is ambiguous
        device.cuda.synchronize_all()
    else:
        device.cuda.synchronize(producer)


def _strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape)))
