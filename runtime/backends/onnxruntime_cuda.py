"""ONNX Runtime on an NVIDIA GPU: find CUDA's libraries, check that graphs really run on the GPU, and buffers.

ONNX Runtime falls back to the CPU with a warning: for a whole graph where a CUDA library is missing, and for single
operators without a CUDA kernel. Both would work, but slowly, so both are refused here. Not run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import functools
import io
import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from sdrpn.errors import MissingDependency, RunFailed
from sdrpn.runtime.backends.device_copy import copy_bytes
from sdrpn.runtime.backends.runner import Array, Buffer, nbytes

__all__ = ["DeviceBuffer", "cuda_fault", "prepare_cuda", "record_placement", "require_cuda"]

_PROVIDER = "CUDAExecutionProvider"
# From this release on, CUDA supports Attention of opset 24 with a mask (microsoft/onnxruntime#27542, 27831, 27992);
# before, it runs on the CPU, and whole caches are copied there at every token (28025).
_LEAST_VERSION = (1, 27)
# On the CPU, each of these would move caches or weights over the bus; shape computations belong on the CPU.
_HEAVY = {"Attention", "TensorScatter", "MatMul", "MatMulNBits", "Gemm", "Conv"}
_INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'sdrpn[cuda]'"


def prepare_cuda() -> None:
    """Load CUDA's libraries from pip's packages.

    Raises: MissingDependency for a release that computes attention on the CPU
    """
    if _is_too_old():
        least = ".".join(map(str, _LEAST_VERSION))
        raise MissingDependency(
            f"backend onnxruntime-cuda needs onnxruntime-gpu {least} or newer, which computes attention on the GPU; "
            f"installed is {onnxruntime.__version__}. Install it (Python 3.11 or newer): {_INSTALL}"
        )
    _preload()


def cuda_fault() -> str | None:
    """Why this ONNX Runtime would not run on a GPU, as far as this is known without a GPU; None: no known reason."""
    if _is_too_old():
        return f"ONNX Runtime {onnxruntime.__version__} computes attention on the CPU"
    _preload()
    return _why_not_loaded()


def _is_too_old() -> bool:
    version = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    return version < _LEAST_VERSION


@functools.cache
def _preload() -> str:
    """ONNX Runtime's messages about missing libraries, captured, because it prints them and stdout is for answers."""
    with redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def record_placement(options: Any) -> None:
    """Make a session record which provider runs each node."""
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


def require_cuda(session: Any, graph: str) -> None:
    """Raises MissingDependency where the whole graph runs on the CPU, RunFailed where nodes that must not do."""
    if session.get_providers()[0] != _PROVIDER:
        reason = _why_not_loaded() or _preload() or "it gave no reason"
        raise MissingDependency(
            f"ONNX Runtime {onnxruntime.__version__} cannot use CUDA ({reason}); install what it needs: {_INSTALL}; "
            "sdrpn doctor shows the driver"
        )
    misplaced = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != _PROVIDER
        for node in part.get_nodes()
        if node.op_type in _HEAVY
    )
    if misplaced:
        operators = ", ".join(f"{count} x {name}" for name, count in sorted(misplaced.items()))
        raise RunFailed(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} has no CUDA kernels for {operators} and would copy "
            "caches or weights to the CPU at every token; update it (pip install -U onnxruntime-gpu), use an fp16 "
            "variant, or answer on the CPU",
            options=("backend onnxruntime",),
        )


def _why_not_loaded() -> str | None:
    """The system's error for the first missing library that the provider needs; None where all are found.

    The provider itself is not loaded: outside ONNX Runtime it would crash the process.
    """
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        for library in _needed_libraries(provider):
            ctypes.CDLL(library)
    except OSError as error:
        return " ".join(str(error).split())
    return None


def _needed_libraries(provider: Path) -> list[str]:
    """CUDA's libraries that a shared object is linked with: their names are near its beginning."""
    with provider.open("rb") as stream:
        return [name.decode() for name in re.findall(rb"\0(libcu\w*\.so\.\d+)(?=\0)", stream.read(1 << 20))]


class DeviceBuffer:
    """Device memory allocated by ONNX Runtime; views share their owner's memory."""

    def __init__(
        self,
        owner: onnxruntime.OrtValue,
        device_id: int,
        pointer: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        whole: bool,
    ) -> None:
        self._owner, self._device_id = owner, device_id
        self.pointer, self.shape, self.dtype = pointer, shape, dtype
        self._whole = whole

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype: str, device: str, device_id: int) -> DeviceBuffer:
        """Allocate and clear."""
        owner = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), device, device_id)
        return cls(owner, device_id, owner.data_ptr(), shape, np.dtype(dtype), whole=True)

    def rows(self, start: int, stop: int) -> DeviceBuffer:
        """A view of (1, start:stop, ...)."""
        shape = (1, stop - start, *self.shape[2:])
        row_bytes = nbytes(self.shape[2:], self.dtype.name)
        return DeviceBuffer(
            self._owner, self._device_id, self.pointer + start * row_bytes, shape, self.dtype, whole=False
        )

    def entries(self, start: int, stop: int) -> DeviceBuffer:
        """A view of (start:stop, ...)."""
        entry_bytes = nbytes(self.shape[1:], self.dtype.name)
        shape = (stop - start, *self.shape[1:])
        return DeviceBuffer(
            self._owner, self._device_id, self.pointer + start * entry_bytes, shape, self.dtype, whole=False
        )

    def write(self, array: Array) -> None:
        """Host to device; whole buffers only."""
        if not self._whole:
            raise RunFailed("a view of a device buffer cannot be written from the host; allocate it separately")
        self._owner.update_inplace(np.ascontiguousarray(np.broadcast_to(array, self.shape), self.dtype))

    def fill(self, fill: Callable[[Array], None]) -> None:
        """See `Buffer.fill`; through host memory."""
        array = np.empty(self.shape, self.dtype)
        fill(array)
        self.write(array)

    def read(self) -> Array:
        """Device to host; reading a view copies its whole buffer."""
        array: Array = self._owner.numpy()
        if self._whole:
            return array
        first = (self.pointer - self._owner.data_ptr()) // self.dtype.itemsize
        return array.reshape(-1)[first : first + math.prod(self.shape)].reshape(self.shape)

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """See `Buffer.copy_rows`; on the device."""
        if not isinstance(source, DeviceBuffer):
            raise RunFailed(f"rows come from a {type(source).__name__}; expected a buffer of the same device")
        row_bytes = self.shape[-1] * self.dtype.itemsize
        blocks, length, source_length = math.prod(self.shape[:-2]), self.shape[-2], source.shape[-2]
        if rows == length == source_length:  # nothing lies between the blocks
            blocks, rows, length, source_length = 1, blocks * rows, blocks * length, blocks * source_length
        for block in range(blocks):
            target = self.pointer + (block * length + start) * row_bytes
            self._copy(target, source.pointer + block * source_length * row_bytes, rows * row_bytes)

    def _copy(self, target: int, source: int, size_bytes: int) -> None:
        copy_bytes(self._owner.device_name(), self._device_id, target, source, size_bytes)

    def with_rows(self, rows: int, keep: int) -> DeviceBuffer:
        """See `Buffer.with_rows`."""
        shape = (*self.shape[:-2], rows, self.shape[-1])
        new = DeviceBuffer.zeros(shape, self.dtype.name, self._owner.device_name(), self._device_id)
        if keep:
            new.copy_rows(self, keep)
        return new
