"""TensorRT and TensorRT-RTX: engines of a bundle on one GPU, on one stream, sharing one block of working memory.

Buffers are on the device and shared by all engines: each reads the outputs of the previous one in place. A decode step
is captured as one CUDA graph (TensorRT-RTX does this itself, per engine). How one engine is run is in
`tensorrt_runner.py`; how the libraries are called, in `tensorrt_library.py` and `cuda.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sdrpn.bundle.bundle import GraphInfo
from sdrpn.errors import BadInput, EngineMismatch, RunFailed
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.interrupt import Cancellation
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Device, available_memory
from sdrpn.runtime.backends.row_store import RowCopies, RowKernel, RowStore
from sdrpn.runtime.backends.runner import Buffer, Step, in_order
from sdrpn.runtime.backends.runtime_cache import RuntimeCache, cache_file
from sdrpn.runtime.backends.step_graph import StepGraph, in_order_on_device
from sdrpn.runtime.backends.tensorrt_library import Engine, Library
from sdrpn.runtime.backends.tensorrt_runner import BoundStep, TensorRtRunner, WorkingMemory, as_built

__all__ = ["EngineOptions", "TensorRtBackend", "TensorRtRunner"]


@dataclass(frozen=True)
class EngineOptions(CheckedFields):
    """How engines are run."""

    weights_on_device_bytes: int | None = None  # per engine, with weight streaming; None: the library's default
    runtime_cache_dir: Path | None = None  # where TensorRT-RTX stores compiled kernels; None: ~/.cache/sdrpn
    keep_runtime_cache: bool = True  # False: compile again in every process
    cuda_graph: bool = True  # False: enqueue the parts of a decode step one by one
    device: int = 0  # the CUDA device index

    def __post_init__(self) -> None:
        super().__post_init__()
        budget = self.weights_on_device_bytes
        if budget is not None and budget < 0:
            raise BadInput(f"weights_on_device_bytes is {budget}; expected a number of bytes, or none")
        if self.device < 0:
            raise BadInput(
                f"device is {self.device}; expected the number of a GPU, the first of which is 0", options=("device",)
            )
        if self.runtime_cache_dir is not None and not self.keep_runtime_cache:
            raise BadInput(f"runtime_cache_dir is {self.runtime_cache_dir}, but keep_runtime_cache is False")


class TensorRtBackend:
    """Allocates buffers on the GPU and loads engines."""

    name = "tensorrt"
    on: Literal["cpu", "gpu"] = "gpu"
    prefill_rows: int | None = None
    reads_whole_caches = False
    most_slots: int | None = None  # as many as the engines' decode step takes, which their manifests say

    def __init__(
        self, library: Library, cuda: Cuda, options: EngineOptions | None = None, *, host_code: bool = False
    ) -> None:
        """Raises RunFailed where CUDA finds no usable GPU, BadInput where the requested one does not exist."""
        self.library, self.options = library, options or EngineOptions()
        self.cancellation = Cancellation()
        self._host_code = host_code
        self.device = Device(cuda)
        self.memory = WorkingMemory(self.device)
        self.note: str | None = None
        self._loaded = 0

    def report(self, note: str) -> None:
        """Record a degradation; the first one is kept as `note`."""
        self.note = self.note or note

    def free_memory(self) -> int | None:
        """See `Backend.free_memory`."""
        return available_memory(self.device.cuda, self.device.facts)

    def allocate(
        self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False, for_cache: bool = False
    ) -> DeviceBuffer:
        """Allocate zeros on the device; with `for_host` in host memory, where the GPU can access that directly."""
        return DeviceBuffer.zeros(self.device, shape, dtype, for_host=for_host)

    def wrap(self, tensor: Any) -> DeviceBuffer:
        """Wrap another library's GPU tensor as a buffer, without a copy. See `DeviceBuffer.wrapping`."""
        return DeviceBuffer.wrapping(self.device, tensor)

    def load(self, graph: GraphInfo, path: Path) -> TensorRtRunner:
        """Load the engine at `path`.

        Raises: RunFailed where the library refuses it; EngineMismatch where it belongs to another graph
        """
        with self.device.cuda.current():
            engine = self.library.load(path, host_code=self._host_code)
            inputs, outputs = as_built(graph.inputs, engine), as_built(graph.outputs, engine)
            expected, found = {*inputs, *outputs}, set(engine.tensors)
            if expected != found:
                raise EngineMismatch(
                    f"{path} has the tensors {sorted(found)}, the graph {graph.name} has {sorted(expected)}; "
                    "build it again: sdrpn build BUNDLE --target NAME"
                )
            engine.stream_weights(self.options.weights_on_device_bytes)
            cache = self._runtime_cache(path, engine)
        self.memory.require(engine.activation_bytes)
        self._loaded += 1
        return TensorRtRunner(self.device, self.memory, graph.name, inputs, outputs, engine, cache, self.unloaded)

    def store_rows(self, caches: Sequence[Buffer], rows: Sequence[Buffer], start: Buffer) -> Step:
        """See `Backend.store_rows`; with one kernel, where the driver can compile it."""
        ours = [[buffer for buffer in some if isinstance(buffer, DeviceBuffer)] for some in (caches, rows, [start])]
        if [len(some) for some in ours] != [len(caches), len(rows), 1]:
            raise RunFailed("rows are stored between buffers of the backend's own device")
        if self._row_kernel is None:
            return RowCopies(ours[0], ours[1], ours[2][0])
        return RowStore(self.device, self._row_kernel, ours[0], ours[1], ours[2][0])

    @cached_property
    def _row_kernel(self) -> RowKernel | None:
        try:
            return RowKernel(self.device.cuda)
        except RunFailed as error:
            self.report(f"new rows of caches are copied one by one: {error}")
            return None

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """See `Backend.chain`; one CUDA graph on TensorRT."""
        bound = [step for step in steps if isinstance(step, BoundStep)]
        buffers = [buffer for buffer in (*written, *read) if isinstance(buffer, DeviceBuffer)]
        if len(buffers) != len(written) + len(read) or not all(isinstance(step, _Enqueued) for step in steps):
            raise RunFailed("a chain needs steps and buffers of its own backend")
        graphs = self.options.cuda_graph and not any(step.runner.engine.streams_weights for step in bound)
        by_library = graphs and self.library.flavour == "tensorrt-rtx"
        own = [step.in_own_context(graph=by_library) if isinstance(step, BoundStep) else step for step in steps]
        uploads, downloads = buffers[: len(written)], buffers[len(written) :]
        for buffer in uploads:
            buffer.defer()
        # Work that the host must enqueue at every step follows the graph.
        inside = [step for step in own if not isinstance(step, RowCopies)]
        outside = [step for step in own if isinstance(step, RowCopies)]
        if graphs and not by_library:
            return in_order((self._graph(inside, uploads, downloads), *outside))
        return in_order((in_order_on_device(inside, uploads, downloads), *outside))

    def _graph(self, steps: Sequence[Step], uploads: list[DeviceBuffer], downloads: list[DeviceBuffer]) -> StepGraph:
        bound = [step for step in steps if isinstance(step, BoundStep)]
        reason = "decode steps are enqueued part by part, not as one CUDA graph"
        return StepGraph(
            self.device,
            steps,
            uploads,
            downloads,
            ready=lambda: all(step.settled for step in bound),
            report=lambda why: self.report(f"{reason}: {why}"),
        )

    def unloaded(self) -> None:
        """Called when a runner is closed; after the last one, all unused memory is freed."""
        self._loaded -= 1
        if self._loaded == 0:
            self.memory.release()
            self.device.trim()

    def _runtime_cache(self, path: Path, engine: Engine) -> RuntimeCache | None:
        if self.library.flavour != "tensorrt-rtx":
            return None
        folder = self.options.runtime_cache_dir
        kept = cache_file(path, folder, self.device.facts.capability) if self.options.keep_runtime_cache else None
        return RuntimeCache(engine, kept, self.report if folder is None else None)


_Enqueued = (BoundStep, RowStore, RowCopies)
