"""ONNX Runtime on an NVIDIA GPU: find CUDA's libraries, see that the graph is really computed there, and its buffers.

It falls back to the CPU with a warning, for a whole graph where a library of CUDA is missing and for single operators
where it has no kernel for them. Either would answer, slowly; so both are refused here. Not run on a GPU yet.
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
from sdrpn.runtime.backends.runner import Array, Buffer, nbytes

__all__ = ["DeviceBuffer", "cuda_fault", "prepare_cuda", "record_placement", "require_cuda"]

_PROVIDER = "CUDAExecutionProvider"
# From here on CUDA computes Attention of opset 24 with a mask (microsoft/onnxruntime#27542, 27831, 27992); before, it
# goes to the CPU, and whole caches with it at every token (28025).
_LEAST_VERSION = (1, 27)
# On the CPU each of these would move caches or weights over the bus; what computes shapes belongs there.
_HEAVY = {"Attention", "TensorScatter", "MatMul", "MatMulNBits", "Gemm", "Conv"}
_INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'sdrpn[cuda]'"


def prepare_cuda() -> None:
    """Load CUDA's libraries from where pip puts them.

    Raises: MissingDependency for a release that computes attention on the CPU
    """
    if _is_too_old():
        least = ".".join(map(str, _LEAST_VERSION))
        raise MissingDependency(
            f"backend onnxruntime-cuda needs onnxruntime-gpu {least} or newer, which computes attention on the GPU; "
            f"here is {onnxruntime.__version__}. Install it (Python 3.11 or newer): {_INSTALL}"
        )
    _preload()


def cuda_fault() -> str | None:
    """Why this ONNX Runtime would not compute on a GPU, as far as can be told without one; None: nothing is known."""
    if _is_too_old():
        return f"ONNX Runtime {onnxruntime.__version__} computes attention on the CPU"
    _preload()
    return _why_not_loaded()


def _is_too_old() -> bool:
    version = tuple(int(part) for part in re.findall(r"\d+", onnxruntime.__version__)[:2])
    return version < _LEAST_VERSION


@functools.cache
def _preload() -> str:
    """What ONNX Runtime says of libraries that it does not find; it prints that, and stdout is for answers."""
    with redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def record_placement(options: Any) -> None:
    """Have a session remember on what each node is computed."""
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")


def require_cuda(session: Any, graph: str) -> None:
    """Raises MissingDependency where the CPU took the graph over, RunFailed where it took what it must not."""
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
        told = ", ".join(f"{count} x {name}" for name, count in sorted(misplaced.items()))
        raise RunFailed(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} has no CUDA kernels for {told} and would copy caches or "
            "weights to the CPU at every token; update it (pip install -U onnxruntime-gpu), use an fp16 variant, or "
            "answer on the CPU: --backend onnxruntime"
        )


def _why_not_loaded() -> str | None:
    """What the system says of the first library that the provider needs and does not find; None where all are there.

    The provider itself is not loaded: outside of ONNX Runtime it would end the process.
    """
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        for library in _needed_libraries(provider):
            ctypes.CDLL(library)
    except OSError as error:
        return " ".join(str(error).split())
    return None


def _needed_libraries(provider: Path) -> list[str]:
    """CUDA's libraries that a shared object is linked with: their names stand near its beginning."""
    with provider.open("rb") as stream:
        return [name.decode() for name in re.findall(rb"\0(libcu\w*\.so\.\d+)(?=\0)", stream.read(1 << 20))]


class DeviceBuffer:
    """Device memory that ONNX Runtime allocated; views share their owner's memory."""

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
            raise RunFailed("a view of a device buffer cannot be written from the host; allocate it on its own")
        self._owner.update_inplace(np.ascontiguousarray(np.broadcast_to(array, self.shape), self.dtype))

    def fill(self, fill: Callable[[Array], None]) -> None:
        """See `Buffer.fill`; through ordinary memory."""
        array = np.empty(self.shape, self.dtype)
        fill(array)
        self.write(array)

    def read(self) -> Array:
        """Device to host; a view costs as much as what it is a view of."""
        array: Array = self._owner.numpy()
        if self._whole:
            return array
        first = (self.pointer - self._owner.data_ptr()) // self.dtype.itemsize
        return array.reshape(-1)[first : first + math.prod(self.shape)].reshape(self.shape)

    def copy_rows(self, source: Buffer, rows: int, start: int = 0) -> None:
        """See `Buffer.copy_rows`; goes through the host, which ONNX Runtime's Python API leaves no way around."""
        updated = self.read()
        updated[..., start : start + rows, :] = source.read()[..., :rows, :]
        self.write(updated)

    def with_rows(self, rows: int, keep: int) -> DeviceBuffer:
        """See `Buffer.with_rows`."""
        shape = (*self.shape[:-2], rows, self.shape[-1])
        new = DeviceBuffer.zeros(shape, self.dtype.name, self._owner.device_name(), self._device_id)
        if keep:
            new.copy_rows(self, keep)
        return new
