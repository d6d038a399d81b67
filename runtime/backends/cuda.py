"""The few calls of CUDA that engines need, through cuda-python. A call that fails is named. Knows no TensorRT.

Everything is enqueued on streams that the caller passes in; nothing here waits but `synchronize` and `synchronize_all`.
Which device is current belongs to the application: it is this one's only while a call here is under way.
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

Handle = Any  # of a stream, a graph or a context, as cuda-python has it; int() gives the address
# After these every call of the process fails (CUDA's documentation of cudaError_t).
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
    """The GPU failed in a way that ends its use by this process: every later call fails as well."""


@dataclass(frozen=True)
class CudaDevice:
    """A GPU as CUDA describes it."""

    name: str
    capability: str  # SM89
    integrated: bool  # shares the system's memory


class Cuda:
    """CUDA's runtime API on one device."""

    def __init__(self, api: Any, device_id: int = 0, driver: Any = None) -> None:
        """Args: api, driver: the modules cuda.bindings.runtime and .driver, or what stands in for them in tests."""
        self._api, self._driver, self.device_id = api, driver, device_id

    def device_count(self) -> int:
        """How many GPUs there are. Raises RunFailed where the driver is missing or too old."""
        return int(self._call(self._api.cudaGetDeviceCount))

    def describe_device(self) -> CudaDevice:
        """The device as CUDA describes it. Raises RunFailed where there is none, BadInput where others are."""
        count = self.device_count()
        if count == 0:
            raise RunFailed("CUDA shows no GPU; `sdrpn doctor` shows what is missing")
        if not 0 <= self.device_id < count:
            raise BadInput(f"device {self.device_id} was asked for; CUDA shows {count}, the first of which is 0")
        found = self._call(self._api.cudaGetDeviceProperties, self.device_id)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return CudaDevice(name.rstrip("\0"), f"SM{found.major}{found.minor}", bool(found.integrated))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, the device is the calling thread's; afterwards the thread's is what it was.

        cudaSetDevice would not do: to set the old one again makes a context on it, which takes memory of a GPU that
        nobody wanted to use.
        """
        if self._is_the_only_one:
            yield
            return
        with self._driving():
            yield

    @contextmanager
    def _driving(self) -> Iterator[None]:
        """As `current`, also where there is one device: a thread that never called the runtime API has none yet."""
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
        """The device's own context, which all libraries share; never released, as they do not."""
        self._drive(self._driver.cuInit, 0)
        return self._drive(self._driver.cuDevicePrimaryCtxRetain, self._drive(self._driver.cuDeviceGet, self.device_id))

    def versions(self) -> tuple[int, int]:
        """The newest CUDA that the driver has (0: there is no driver), and that of the library; 13040 is 13.4."""
        return int(self._call(self._api.cudaDriverGetVersion)), int(self._call(self._api.cudaRuntimeGetVersion))

    def free_memory(self) -> int | None:
        """Bytes that are free on the device; None where CUDA cannot tell, as on some that share the system's memory."""
        try:
            with self.current():
                free, _ = self._call(self._api.cudaMemGetInfo)
        except CudaFault:
            raise
        except RunFailed:
            return None
        return int(free)

    def device_of(self, pointer: int) -> int | None:
        """Which device can work on this address; None for ordinary memory of the host."""
        found = self._call(self._api.cudaPointerGetAttributes, pointer)
        host = int(found.type) == int(self._api.cudaMemoryType.cudaMemoryTypeUnregistered)
        return None if host else int(found.device)

    def allocate(self, size_bytes: int) -> int:
        """Device memory, not cleared."""
        with self.current():
            return int(self._call(self._api.cudaMalloc, size_bytes))

    def free(self, pointer: int) -> None:
        """Give device memory back; no stream may be using it."""
        self._call(self._api.cudaFree, pointer)

    def allocate_host(self, size_bytes: int) -> int:
        """Pinned host memory that the device can reach."""
        with self.current():
            return int(self._call(self._api.cudaHostAlloc, size_bytes, self._api.cudaHostAllocMapped))

    def free_host(self, pointer: int) -> None:
        """Give pinned memory back; no stream may be using it."""
        self._call(self._api.cudaFreeHost, pointer)

    def device_pointer(self, host_pointer: int) -> int:
        """Where the device sees pinned memory."""
        with self.current():
            return int(self._call(self._api.cudaHostGetDevicePointer, host_pointer, 0))

    def create_stream(self) -> Handle:
        """A stream that does not wait for the default one."""
        with self.current():
            return self._call(self._api.cudaStreamCreateWithFlags, self._api.cudaStreamNonBlocking)

    def synchronize(self, stream: Handle) -> None:
        """Wait until everything that was enqueued is done."""
        self._call(self._api.cudaStreamSynchronize, stream)

    def synchronize_all(self) -> None:
        """Wait for all streams of the device, whoever made them."""
        with self.current():
            self._call(self._api.cudaDeviceSynchronize)

    def destroy_stream(self, stream: Handle) -> None:
        """Nothing may be enqueued any more."""
        self._call(self._api.cudaStreamDestroy, stream)

    def copy(self, target: int, source: int, size_bytes: int, stream: Handle) -> None:
        """Between any two places; CUDA tells from the addresses which they are."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._call(self._api.cudaMemcpyAsync, target, source, size_bytes, kind, stream)

    def copy_blocks(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, count: int, stream: Handle
    ) -> None:
        """`count` blocks of `width` bytes, which lie a pitch apart."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDefault
        self._call(self._api.cudaMemcpy2DAsync, target, target_pitch, source, source_pitch, width, count, kind, stream)

    def clear(self, pointer: int, size_bytes: int, stream: Handle) -> None:
        """Zeros."""
        with self.current():
            self._call(self._api.cudaMemsetAsync, pointer, 0, size_bytes, stream)

    def begin_capture(self, stream: Handle) -> None:
        """From here on what is enqueued is written down instead of run."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with self.current():
            self._call(self._api.cudaStreamBeginCapture, stream, mode)

    def end_capture(self, stream: Handle) -> Handle:
        """What was written down since, ready to be launched."""
        graph = self._call(self._api.cudaStreamEndCapture, stream)
        try:
            with self.current():
                return self._call(self._api.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(self._api.cudaGraphDestroy, graph)

    def abandon_capture(self, stream: Handle) -> None:
        """End a capture in which something failed; the stream can be used again."""
        error, graph = self._api.cudaStreamEndCapture(stream)
        if int(error) == 0 and graph is not None:
            self._call(self._api.cudaGraphDestroy, graph)

    def launch(self, graph: Handle, stream: Handle) -> None:
        """Run what was captured."""
        with self.current():
            self._call(self._api.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Handle) -> None:
        """It may not be running."""
        self._call(self._api.cudaGraphExecDestroy, graph)

    def compile(self, ptx: bytes, name: bytes) -> Handle:
        """A kernel, compiled by the driver for the device. Raises RunFailed where it refuses.

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
        """What follows the error code: nothing, one value, or several."""
        error, *values = function(*arguments)
        if int(error) != 0:
            _, name = self._api.cudaGetErrorName(error)
            _, text = self._api.cudaGetErrorString(error)
            self._fail(function.__name__, _text(name), _text(text))
        return values[0] if len(values) == 1 else values

    def _drive(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """As `_call`, of the driver API, which names its errors by another function."""
        try:
            error, *values = function(*arguments)
        except RuntimeError as missing:  # how the bindings say that there is no driver
            raise RunFailed(f"{function.__name__} failed: {' '.join(str(missing).split())}") from missing
        if int(error) != 0:
            _, name = self._driver.cuGetErrorName(error)
            _, text = self._driver.cuGetErrorString(error)
            self._fail(function.__name__, _text(name), _text(text))
        return values[0] if len(values) == 1 else values

    def _fail(self, call: str, name: str, text: str) -> NoReturn:
        told = f"{call} failed with {name} ({text})"
        if name in _LASTING:
            raise CudaFault(f"{told}; this process cannot use the GPU any more: close the session and start it again")
        if name in ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY"):
            advice = "free GPU memory, or build the engines with a smaller --max-context or --weight-streaming"
            raise RunFailed(f"{told}; {advice}")
        raise RunFailed(f"{told}; `sdrpn doctor` shows the driver and the GPU")


def load_cuda(purpose: str, device_id: int = 0) -> Cuda:
    """Through cuda-python. Raises MissingDependency where it is not installed."""
    try:
        api, driver = import_module("cuda.bindings.runtime"), import_module("cuda.bindings.driver")
        api.cudaMalloc  # noqa: B018  # a folder of this name on the path imports as well, empty
    except (ImportError, AttributeError) as error:
        raise MissingDependency(
            f"{purpose} needs cuda-python, which cannot be imported ({' '.join(str(error).split())}); install it: "
            "pip install cuda-python"
        ) from error
    return Cuda(api, device_id, driver)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
