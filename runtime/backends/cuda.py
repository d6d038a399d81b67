"""The few CUDA calls that engines need, through cuda-python; errors name the failed call. Knows no TensorRT.

Everything is enqueued on streams that the caller passes in; only `synchronize` and `synchronize_all` wait. The
application's current device is restored after every call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, NoReturn

from sdrpn.errors import BadInput, MissingDependency, RunFailed

__all__ = ["Cuda", "CudaDevice", "CudaFault", "load_cuda"]

Handle = Any  # cuda-python's object for a stream, graph or context; int() gives the address
# After these errors every call of the process fails (CUDA's documentation of cudaError_t).
_LASTING = {
    "cudaErrorECCUncorrectable",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorIllegalAddress",
    "cudaErrorLaunchTimeout",
    "cudaErrorAssert",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalInstruction",
    "cudaErrorMisalignedAddress",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
}


class CudaFault(RunFailed):
    """A GPU error after which this process cannot use the GPU any more: every later call fails."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU as CUDA describes it."""

    name: str
    capability: str  # SM89
    integrated: bool  # shares memory with the CPU


class Cuda:
    """CUDA's runtime API on one device."""

    def __init__(self, api: Any, device_id: int = 0, driver: Any = None) -> None:
        """Args: api, driver: the modules cuda.bindings.runtime and .driver, or replacements in tests."""
        self._api, self._driver, self.device_id = api, driver, device_id

    def device_count(self) -> int:
        """The number of GPUs. Raises RunFailed where the driver is missing or too old."""
        return int(self._call(self._api.cudaGetDeviceCount))

    def describe_device(self) -> CudaDevice:
        """The device's properties. Raises BadInput where it does not exist."""
        count = self.device_count()
        if count == 0:
            raise BadInput("CUDA shows no GPU on this machine; `sdrpn doctor` shows what is missing, or use a CPU")
        if not 0 <= self.device_id < count:
            raise BadInput(
                f"device {self.device_id} was requested; CUDA shows {count} devices: expected a number from 0 to "
                f"{count - 1}"
            )
        found = self._call(self._api.cudaGetDeviceProperties, self.device_id)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return CudaDevice(name.rstrip("\0"), f"SM{found.major}{found.minor}", bool(found.integrated))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device the calling thread's current one inside the block, and restore the previous one after it.

        Not with cudaSetDevice: restoring the previous device would create a context on it, which takes memory on a GPU
        that may never be used.
        """
        if self._is_the_only_one:
            yield
            return
        with self._driving():
            yield

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """`current`, also with a single device: a thread that never called the runtime API has no current context."""
        self._drive(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._drive(self._driver.cuCtxPopCurrent)

    @cached_property
    def _is_the_only_one(self) -> bool:
        return self.device_count() == 1

    @cached_property
    def _context(self) -> Handle:
        """The device's primary context, shared by all libraries; never released, as they do not either."""
        self._drive(self._driver.cuInit, 0)
        return self._drive(self._driver.cuDevicePrimaryCtxRetain, self._drive(self._driver.cuDeviceGet, self.device_id))

    def versions(self) -> tuple[int, int]:
        """The newest CUDA version of the driver (0: no driver), and that of the library; 13040 is 13.4."""
        return int(self._call(self._api.cudaDriverGetVersion)), int(self._call(self._api.cudaRuntimeGetVersion))

    def free_memory(self) -> int | None:
        """Free bytes on the device; None where CUDA does not report them, as on some integrated GPUs."""
        try:
            with self.current():
                free, _ = self._call(self._api.cudaMemGetInfo)
        except CudaFault:
            raise
        except RunFailed:
            return None
        return int(free)

    def device_of(self, pointer: int) -> int | None:
        """The device that can access this address; None for pageable host memory."""
        found = self._call(self._api.cudaPointerGetAttributes, pointer)
        host = int(found.type) == int(self._api.cudaMemoryType.cudaMemoryTypeUnregistered)
        return None if host else int(found.device)

    def allocate(self, size_bytes: int) -> int:
        """Device memory, not cleared."""
        with self.current():
            return int(self._call(self._api.cudaMalloc, size_bytes))

    def free(self, pointer: int) -> None:
        """Free device memory; no stream may be using it."""
        self._call(self._api.cudaFree, pointer)

    def allocate_host(self, size_bytes: int) -> int:
        """Allocate pinned host memory that the device can access."""
        with self.current():
            return int(self._call(self._api.cudaHostAlloc, size_bytes, self._api.cudaHostAllocMapped))

    def free_host(self, pointer: int) -> None:
        """Free pinned memory; no stream may be using it."""
        self._call(self._api.cudaFreeHost, pointer)

    def device_pointer(self, host_pointer: int) -> int:
        """The device address of pinned memory."""
        with self.current():
            return int(self._call(self._api.cudaHostGetDevicePointer, host_pointer, 0))

    def create_stream(self) -> Handle:
        """Create a stream that does not synchronise with the default stream."""
        with self.current():
            return self._call(self._api.cudaStreamCreateWithFlags, self._api.cudaStreamNonBlocking)

    def synchronize(self, stream: Handle) -> None:
        """Wait until all enqueued work on the stream is done."""
        self._call(self._api.cudaStreamSynchronize, stream)

    def synchronize_all(self) -> None:
        """Wait for all streams of the device, including those of other libraries."""
        with self.current():
            self._call(self._api.cudaDeviceSynchronize)

    def destroy_stream(self, stream: Handle) -> None:
        """Destroy a stream without pending work."""
        self._call(self._api.cudaStreamDestroy, stream)

    def copy(self, target: int, source: int, size_bytes: int, stream: Handle) -> None:
        """Copy between host and device addresses; CUDA derives the direction."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._call(self._api.cudaMemcpyAsync, target, source, size_bytes, kind, stream)

    def copy_blocks(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: Handle
    ) -> None:
        """Copy `count` blocks of `width` bytes, with a pitch between their starts."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._call(self._api.cudaMemcpy2DAsync, target, target_pitch, source, source_pitch, width, count, kind, stream)

    def clear(self, pointer: int, size_bytes: int, stream: Handle) -> None:
        """Zeros."""
        with self.current():
            self._call(self._api.cudaMemsetAsync, pointer, 0, size_bytes, stream)

    def begin_capture(self, stream: Handle) -> None:
        """Start capturing: enqueued work is recorded instead of run."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.current():
            self._call(self._api.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: Handle) -> Handle:
        """End the capture; returns the executable graph."""
        graph = self._call(self._api.cudaStreamEndCapture, stream)
        try:
            with self.current():
                return self._call(self._api.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(self._api.cudaGraphDestroy, graph)

    def abandon_capture(self, stream: Handle) -> None:
        """End a failed capture; the stream can be used again."""
        error, graph = self._api.cudaStreamEndCapture(stream)
        if int(error) == 0 and graph is not None:
            self._call(self._api.cudaGraphDestroy, graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Launch a captured graph."""
        with self.current():
            self._call(self._api.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """Destroy a graph that is not running."""
        self._call(self._api.cudaGraphExecDestroy, graph)

    def compile(self, ptx: bytes, name: bytes) -> Handle:
        """A kernel, compiled by the driver for the device. Raises RunFailed where that fails.

        Args: ptx: ending in a zero byte
        """
        with self._driving():
            module = self._drive(self._driver.cuModuleLoadData, ptx)
            return self._drive(self._driver.cuModuleGetFunction, module, name)

    def launch_kernel(
        self, kernel: Handle, grid: tuple[int, int], threads: int, addresses: tuple[int, ...], stream: Handle
    ) -> None:
        """Enqueue a kernel whose arguments are addresses."""
        arguments = (addresses, (ctypes.c_uint64,) * len(addresses))
        with self._driving():
            self._drive(self._driver.cuLaunchKernel, kernel, *grid, 1, threads, 1, 1, 0, int(stream), arguments, 0)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; returns the values after the error code: none, one, or several."""
        error, *values = function(*arguments)
        if int(error) != 0:
            _, name = self._api.cudaGetErrorName(error)
            _, text = self._api.cudaGetErrorString(error)
            self._fail(function.__name__, _text(name), _text(text))
        return values[0] if len(values) == 1 else values

    def _drive(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`_call` for the driver API, which has its own function for error names."""
        try:
            error, *values = function(*arguments)
        except RuntimeError as missing:  # what the bindings raise without a driver
            raise RunFailed(f"{function.__name__} failed: {' '.join(str(missing).split())}") from missing
        if int(error) != 0:
            _, name = self._driver.cuGetErrorName(error)
            _, text = self._driver.cuGetErrorString(error)
            self._fail(function.__name__, _text(name), _text(text))
        return values[0] if len(values) == 1 else values

    def _fail(self, call: str, name: str, text: str) -> NoReturn:
        failure = f"{call} failed with {name} ({text})"
        if name in _LASTING:
            raise CudaFault(
                f"{failure}; this process cannot use the GPU any more: close the session and start it again"
            )
        if name in ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"):
            advice = "free GPU memory, or build the engines for a shorter context or with weight streaming"
            raise RunFailed(f"{failure}; {advice}")
        raise RunFailed(f"{failure}; `sdrpn doctor` shows the driver and the GPU")


def load_cuda(purpose: str, device_id: int = 0) -> Cuda:
    """CUDA through cuda-python. Raises MissingDependency where it is not installed."""
    try:
        api, driver = import_module("cuda.bindings.runtime"), import_module("cuda.bindings.driver")
        api.cudaMalloc  # noqa: B018  # a folder of this name on sys.path imports as an empty module
    except (ImportError, AttributeError) as error:
        raise MissingDependency(
            f"{purpose} needs cuda-python, which cannot be imported ({' '.join(str(error).split())}); install it: "
            "pip install cuda-python"
        ) from error
    return Cuda(api, device_id, driver)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
