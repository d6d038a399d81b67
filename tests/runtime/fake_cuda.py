"""CUDA's runtime API in ordinary memory: what is enqueued runs only when somebody waits, as late as a GPU might run it.

So a result that is read without waiting is not there yet, a staging buffer that is written again too early spoils the
copy, and memory that is freed too early is noticed. It refuses what CUDA refuses: another device's streams and memory,
forbidden calls in a capture (which spoil it), more memory than there is, and everything after a fault of the GPU. Every
call is recorded.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.bindings import runtime as real

from tests.runtime.fake_streams import LEGACY, Operation, Range, Streams

__all__ = ["FakeCudart", "Operation"]

OK = real.cudaError_t.cudaSuccess
_ALIGNMENT = 256
_INVALID_VALUE = real.cudaError_t.cudaErrorInvalidValue
_INVALID_HANDLE = real.cudaError_t.cudaErrorInvalidResourceHandle
# After these the process cannot use the GPU any more: every call fails the same way.
STICKY = {
    real.cudaError_t.cudaErrorECCUncorrectable,
    real.cudaError_t.cudaErrorIllegalAddress,
    real.cudaError_t.cudaErrorMisalignedAddress,
    real.cudaError_t.cudaErrorIllegalInstruction,
    real.cudaError_t.cudaErrorLaunchTimeout,
    real.cudaError_t.cudaErrorLaunchFailure,
}
_FORBIDDEN_WHILE_CAPTURING = {
    "cudaMalloc",
    "cudaFree",
    "cudaHostAlloc",
    "cudaFreeHost",
    "cudaDeviceSynchronize",
    "cudaEventQuery",
    "cudaEventSynchronize",
}
_FORBIDDEN_ON_A_CAPTURED_STREAM = {"cudaStreamSynchronize", "cudaStreamQuery", "cudaStreamDestroy"}
_WORK_AFTER_A_FAULT = {"cudaGetDeviceCount", "cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetDevice"}


@dataclass
class Capture:
    """What is enqueued on a stream while it is written down."""

    stream: int
    operations: list[Operation] = field(default_factory=list)
    spoilt: bool = False


@dataclass(frozen=True)
class Allocation:
    size: int
    kind: str  # device or pinned
    device: int
    memory: Any


def _recorded(method: Callable[..., Any]) -> Callable[..., Any]:
    """Write the call down, and fail it if a test asked for that or CUDA would."""

    @functools.wraps(method)
    def call(self: FakeCudart, *arguments: Any) -> Any:
        name = method.__name__
        self.calls.append((name, *arguments))
        if self.lost is not None and name not in _WORK_AFTER_A_FAULT:
            return (self.lost,)
        if name in self.failures:
            error = self.failures.pop(name)
            if name == "cudaStreamEndCapture":  # it ends however it ends
                self.capture = None
            if error in STICKY:
                self.lose(error)
            return (error,)
        if self.capture is not None and self._spoils(name, arguments):
            self.capture.spoilt = True
            return (real.cudaError_t.cudaErrorStreamCaptureUnsupported,)
        return method(self, *arguments)

    return call


class FakeCudart:
    """In place of the module cuda.bindings.runtime."""

    cudaHostAllocMapped = real.cudaHostAllocMapped  # noqa: N815
    cudaStreamNonBlocking = real.cudaStreamNonBlocking  # noqa: N815
    cudaMemcpyKind = real.cudaMemcpyKind  # noqa: N815
    cudaMemoryType = real.cudaMemoryType  # noqa: N815
    cudaStreamCaptureMode = real.cudaStreamCaptureMode  # noqa: N815
    cudaError_t = real.cudaError_t  # noqa: N815

    def __init__(
        self, *, integrated: bool = False, devices: int = 1, memory: int = 24_000_000_000, occupied: int = 4_000_000_000
    ) -> None:
        """Args: memory: bytes of every device; occupied: by others, in the system's eyes the page cache as well."""
        self.integrated, self.devices = integrated, devices
        self.memory, self.occupied = memory, occupied
        self.calls: list[tuple[Any, ...]] = []
        self.failures: dict[str, Any] = {}  # call -> the error of its next use
        self.violations: list[str] = []  # what would be undefined behaviour on a GPU
        self.live: dict[int, Allocation] = {}
        self.lost: Any = None  # the fault after which nothing works
        self.initialised: set[int] = set()  # devices that have a context, which takes memory there
        self.capture: Capture | None = None
        self.graphs: dict[int, list[Operation]] = {}
        self.streams = Streams(self.violations, self._execute)
        self._numbers = 0
        self._thread = threading.local()

    def names(self) -> list[str]:
        """The calls without their arguments, but for those that only ask which device is current."""
        return [call[0] for call in self.calls if call[0] != "cudaGetDevice"]

    @property
    def current(self) -> int:
        """The calling thread's device."""
        stack = self.context_stack
        return stack[-1] if stack else getattr(self._thread, "device", 0)

    @property
    def context_stack(self) -> list[int]:
        """Devices whose contexts the thread pushed."""
        if not hasattr(self._thread, "stack"):
            self._thread.stack = []
        stack: list[int] = self._thread.stack
        return stack

    def launch(
        self, stream: int, name: str, run: Callable[[], None], reads: tuple[Range, ...], writes: tuple[Range, ...]
    ) -> None:
        """A kernel: onto the stream, or into the graph that is being captured."""
        if self.streams.device(stream) != self.current:
            self.violations.append(
                f"{name} is launched while device {self.current} is current, on a stream of another one"
            )
        self._enqueue(stream, Operation(name, run, reads, writes))

    def lose(self, error: Any) -> None:
        """From now on every call fails like this."""
        self.lost = error
        self.streams.drop_all()

    def foreign_stream(self) -> int:
        """A stream of another library."""
        return self.streams.create(self.current)

    def place_of(self, address: int, size: int = 1) -> Allocation | None:
        """The allocation that holds these bytes."""
        for start, allocation in self.live.items():
            if start <= address and address + size <= start + allocation.size:
                return allocation
        return None

    def _enqueue(self, stream: int, operation: Operation) -> None:
        self._require_places(operation, "enqueued", self.streams.device(stream))
        if self.capture is not None and self.capture.stream == stream:
            self.capture.operations.append(operation)
        else:
            self.streams.append(stream, operation)

    def _execute(self, operation: Operation) -> None:
        if not self._require_places(operation, "run"):
            self.lose(real.cudaError_t.cudaErrorIllegalAddress)
            return
        operation.run()

    def _require_places(self, operation: Operation, when: str, device: int | None = None) -> bool:
        for address, size in operation.touches:
            found = self.place_of(address, size)
            if found is None:
                self.violations.append(f"{operation.name} touches memory that is not allocated when it is {when}")
                return False
            if device is not None and found.kind == "device" and found.device != device:
                self.violations.append(f"{operation.name} touches memory of device {found.device} on device {device}")
        return True

    def _spoils(self, name: str, arguments: tuple[Any, ...]) -> bool:
        assert self.capture is not None
        captured = name in _FORBIDDEN_ON_A_CAPTURED_STREAM and arguments[0] in (self.capture.stream, 0, LEGACY)
        return captured or name in _FORBIDDEN_WHILE_CAPTURING

    def _new(self, size: int, kind: str) -> int:
        memory = np.full(size + _ALIGNMENT, 0xFF, np.uint8)  # NaN in every floating-point type
        address = -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        self.initialised.add(self.current)
        self.live[address] = Allocation(size, kind, self.current, memory)
        return address

    def _drop(self, address: int, kind: str) -> None:
        if address not in self.live or self.live[address].kind != kind:
            self.violations.append(f"{address} is not {kind} memory that can be freed")
            return
        size = self.live[address].size
        for operation in self.streams.pending():
            if any(start < address + size and address < start + n for start, n in operation.touches):
                self.violations.append(f"memory is freed while {operation.name} may still use it")
        del self.live[address]

    def _free_bytes(self) -> int:
        used = sum(
            block.size for block in self.live.values() if block.kind == "device" and block.device == self.current
        )
        return self.memory - self.occupied - used

    @_recorded
    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return OK, self.devices

    @_recorded
    def cudaGetDevice(self) -> Any:  # noqa: N802
        return OK, self.current

    @_recorded
    def cudaSetDevice(self, device: int) -> Any:  # noqa: N802
        if not 0 <= device < self.devices:
            return (real.cudaError_t.cudaErrorInvalidDevice,)
        self.initialised.add(device)  # from CUDA 12 on
        if self.context_stack:
            self.context_stack[-1] = device
        self._thread.device = device
        return (OK,)

    @_recorded
    def cudaGetDeviceProperties(self, device: int) -> Any:  # noqa: N802
        if not 0 <= device < self.devices:
            return (real.cudaError_t.cudaErrorInvalidDevice,)
        name = b"Fake GPU" if device == 0 else f"Fake GPU {device}".encode()
        return OK, SimpleNamespace(name=name, major=8, minor=9, integrated=int(self.integrated))

    @_recorded
    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return OK, 13040

    @_recorded
    def cudaRuntimeGetVersion(self) -> Any:  # noqa: N802
        return OK, 13000

    @_recorded
    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        self.initialised.add(self.current)
        return OK, self._free_bytes(), self.memory

    @_recorded
    def cudaPointerGetAttributes(self, address: int) -> Any:  # noqa: N802
        found, kinds = self.place_of(address), real.cudaMemoryType
        if found is None:
            return OK, SimpleNamespace(type=kinds.cudaMemoryTypeUnregistered, device=-1)
        kind = kinds.cudaMemoryTypeDevice if found.kind == "device" else kinds.cudaMemoryTypeHost
        return OK, SimpleNamespace(type=kind, device=found.device)

    @_recorded
    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if size > self._free_bytes():
            return (real.cudaError_t.cudaErrorMemoryAllocation,)
        return OK, self._new(size, "device")

    @_recorded
    def cudaFree(self, address: int) -> Any:  # noqa: N802
        self._drop(address, "device")
        return (OK,)

    @_recorded
    def cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        assert flags == real.cudaHostAllocMapped
        return OK, self._new(size, "pinned")

    @_recorded
    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        self._drop(address, "pinned")
        return (OK,)

    @_recorded
    def cudaHostGetDevicePointer(self, address: int, flags: int) -> Any:  # noqa: N802
        if address not in self.live or self.live[address].kind != "pinned":
            return (_INVALID_VALUE,)
        return OK, address

    @_recorded
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == real.cudaStreamNonBlocking
        self.initialised.add(self.current)
        return OK, self.streams.create(self.current)

    @_recorded
    def cudaStreamSynchronize(self, stream: int) -> Any:  # noqa: N802
        if not self.streams.known(stream):
            return (_INVALID_HANDLE,)
        self.streams.run(stream)
        return (OK if self.lost is None else self.lost,)

    @_recorded
    def cudaDeviceSynchronize(self) -> Any:  # noqa: N802
        self.streams.run_all()
        return (OK if self.lost is None else self.lost,)

    @_recorded
    def cudaStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        self.streams.destroy(stream)
        return (OK,)

    @_recorded
    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> Any:  # noqa: N802
        copy = Operation("copy", lambda: _move(target, source, size), ((source, size),), ((target, size),))
        self._enqueue(stream, copy)
        return (OK,)

    @_recorded
    def cudaMemcpy2DAsync(  # noqa: N802
        self, target: int, to_pitch: int, source: int, pitch: int, width: int, count: int, kind: Any, stream: int
    ) -> Any:
        if width > min(to_pitch, pitch):
            return (real.cudaError_t.cudaErrorInvalidPitchValue,)

        def run() -> None:
            for block in range(count):
                _move(target + block * to_pitch, source + block * pitch, width)

        reads = tuple((source + block * pitch, width) for block in range(count))
        writes = tuple((target + block * to_pitch, width) for block in range(count))
        self._enqueue(stream, Operation("copy 2D", run, reads, writes))
        return (OK,)

    @_recorded
    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:  # noqa: N802
        self.launch(stream, "clear", lambda: _set(address, value, size), (), ((address, size),))
        return (OK,)

    @_recorded
    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> Any:  # noqa: N802
        assert self.capture is None
        self.capture = Capture(stream)
        return (OK,)

    @_recorded
    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        captured, self.capture = self.capture, None
        assert captured is not None
        if captured.spoilt:
            return real.cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, captured.operations

    @_recorded
    def cudaGraphInstantiate(self, graph: list[Operation], flags: int) -> Any:  # noqa: N802
        self._numbers += 1
        self.graphs[self._numbers] = list(graph)
        return OK, self._numbers

    @_recorded
    def cudaGraphDestroy(self, graph: list[Operation]) -> Any:  # noqa: N802
        return (OK,)

    @_recorded
    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:  # noqa: N802
        if self.streams.device(stream) != self.current:
            self.violations.append(f"a graph is launched while device {self.current} is current, on another one's")
        for operation in self.graphs[graph]:
            self._require_places(operation, "launched")
            self.streams.append(stream, operation)
        return (OK,)

    @_recorded
    def cudaGraphExecDestroy(self, graph: int) -> Any:  # noqa: N802
        del self.graphs[graph]
        return (OK,)

    def cudaGetErrorName(self, error: Any) -> Any:  # noqa: N802
        return real.cudaGetErrorName(error)

    def cudaGetErrorString(self, error: Any) -> Any:  # noqa: N802
        return real.cudaGetErrorString(error)


def _move(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


def _set(address: int, value: int, size: int) -> None:
    ctypes.memset(address, value, size)
