"""Sessions on a real GPU's CUDA without TensorRT: engines are ONNX Runtime on the CPU, in the order of the stream.

All "device" memory is pinned memory of the host, which has one address for both. An execution is a host function of the
stream: a capture records it, and every launch of the graph calls it again. Copies, kernels and graphs are CUDA's own.
"""

from __future__ import annotations

import ctypes
import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.backends.tensorrt import TensorRtBackend
from sdrpn.runtime.backends.tensorrt_library import Library
from tests.runtime.gpu import fake_gpu

__all__ = ["HostNodes", "PinnedCuda", "session_on_cuda"]

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class PinnedCuda(Cuda):
    """Device memory that the host can read and write, too."""

    def allocate(self, size_bytes: int) -> int:
        return self.allocate_host(size_bytes)

    def free(self, pointer: int) -> None:
        self.free_host(pointer)


class HostNodes:
    """In place of the fake CUDA under the fake TensorRT: executions are enqueued on the real stream."""

    capture = None  # whether one is under way is CUDA's business here
    current = 0

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.initialised: set[int] = set()
        self._runs: dict[int, Callable[[], None]] = {}
        self._numbers = itertools.count(1)
        self._function = _FUNCTION(self._run)  # kept: CUDA has only its address
        # Not cuda-python's call, which frees what a captured node needs at its second launch.
        self._enqueue = ctypes.CDLL("libcuda.so.1").cuLaunchHostFunc

    def place_of(self, pointer: int, size: int = 1) -> object:
        return self

    def launch(self, stream: int, name: str, run: Callable[[], None], *touches: Any) -> None:
        key = next(self._numbers)
        self._runs[key] = run
        error = self._enqueue(ctypes.c_void_p(int(stream)), self._function, ctypes.c_void_p(key))
        if error:
            self.violations.append(f"cuLaunchHostFunc for {name} failed with {error}")

    def _run(self, key: int) -> None:
        try:
            self._runs[key]()
        except Exception:  # a host function cannot fail
            self.violations.append(traceback.format_exc())


@contextmanager
def session_on_cuda(
    source: Path, folder: Path, *, variant: str, flavour: str, cuda_graph: bool, max_batch: int = 1
) -> Iterator[tuple[Session, HostNodes]]:
    """A session whose engines run as host nodes, and the nodes. Raises RunFailed without a GPU."""
    from cuda.bindings import driver, runtime

    fake = fake_gpu(source, folder, variant=variant, flavour=flavour, max_context=1024, max_batch=max_batch)
    nodes = HostNodes()
    fake.trt.cuda = nodes  # type: ignore[assignment]
    options = EngineOptions(cuda_graph=cuda_graph, keep_runtime_cache=False)
    backend = TensorRtBackend(Library(flavour, fake.trt), PinnedCuda(runtime, 0, driver), options)
    with fake.session_of(backend, max_batch) as session:
        yield session, nodes
        assert backend.note is None
