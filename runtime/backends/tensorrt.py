"""TensorRT and TensorRT-RTX: engines of a bundle on one GPU, all on one stream, working in one block of memory.

Buffers are on the device and shared by all engines: what one writes the next reads where it lies. A decode step is
captured as one CUDA graph (TensorRT-RTX does that by itself, engine by engine). How the libraries are called is written
in `tensorrt_library.py` and `cuda.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.atomic import replacing_file, require_writable_file
from sdrpn.bundle import GraphInfo, TensorInfo
from sdrpn.errors import BadInput, EngineMismatch, RunFailed
from sdrpn.interrupt import Cancellation
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Block, Device
from sdrpn.runtime.backends.step_graph import StepGraph, in_order_on_device
from sdrpn.runtime.backends.tensorrt_library import Context, Engine, Library
from sdrpn.runtime.runner import Buffer, Step, check_bindings

__all__ = ["EngineOptions", "TensorRtBackend", "TensorRtRunner"]


@dataclass(frozen=True)
class EngineOptions:
    """How engines are run."""

    weights_on_device_bytes: int | None = None  # of engines built for weight streaming, each; None: what is right
    runtime_cache_dir: Path | None = None  # where TensorRT-RTX keeps what it compiles; None: it compiles again
    cuda_graph: bool = True  # False: enqueue a decode step's parts one by one

    def __post_init__(self) -> None:
        budget = self.weights_on_device_bytes
        if budget is not None and budget < 0:
            raise BadInput(f"weights_on_device_bytes is {budget}; expected a number of bytes, or none")


class WorkingMemory:
    """The one block that all contexts work in: they take turns on the stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.block: Block | None = None

    def release(self) -> None:
        """No engine is loaded any more."""
        self.block = None

    def require(self, size_bytes: int) -> None:
        """Make it at least so large; whoever was given the smaller one keeps it until it is told of this one."""
        if self.block is None or self.block.size_bytes < size_bytes:
            self.block = self._device.memory.take(size_bytes)


class TensorRtBackend:
    """Allocates buffers on the GPU and loads engines."""

    name = "tensorrt"
    prefill_rows: int | None = None

    def __init__(
        self, library: Library, cuda: Cuda, options: EngineOptions | None = None, *, host_code: bool = False
    ) -> None:
        """Raises RunFailed where CUDA finds no GPU that it can use."""
        self.library, self.options = library, options or EngineOptions()
        self.cancellation = Cancellation()
        self._host_code = host_code
        self.device = Device(cuda)
        self.memory = WorkingMemory(self.device)
        self._loaded = 0

    def allocate(self, shape: tuple[int, ...], dtype: str, *, for_host: bool = False) -> DeviceBuffer:
        """Zeros on the device; for the host in its own memory, where the GPU works in that anyway."""
        return DeviceBuffer.zeros(self.device, shape, dtype, for_host=for_host)

    def wrap(self, tensor: Any) -> DeviceBuffer:
        """Another library's tensor on the GPU as a buffer, without a copy. See `DeviceBuffer.wrapping`."""
        return DeviceBuffer.wrapping(self.device, tensor)

    def load(self, graph: GraphInfo, path: Path) -> TensorRtRunner:
        """Load the engine at `path`.

        Raises: RunFailed where the library refuses it; EngineMismatch where it is one of another graph
        """
        engine = self.library.load(path, host_code=self._host_code)
        inputs, outputs = _as_built(graph.inputs, engine), _as_built(graph.outputs, engine)
        expected, found = {*inputs, *outputs}, set(engine.tensors)
        if expected != found:
            raise EngineMismatch(
                f"{path} has the tensors {sorted(found)}, the graph {graph.name} has {sorted(expected)}; "
                "build it again: sdrpn build BUNDLE --target NAME"
            )
        engine.stream_weights(self.options.weights_on_device_bytes)
        self.memory.require(engine.activation_bytes)
        self._loaded += 1
        return TensorRtRunner(self, graph.name, inputs, outputs, engine, self._runtime_cache(path, engine))

    def chain(self, steps: Sequence[Step], written: Sequence[Buffer], read: Sequence[Buffer]) -> Step:
        """See `Backend.chain`; one CUDA graph on TensorRT."""
        bound = tuple(step for step in steps if isinstance(step, BoundStep))
        buffers = [one for one in (*written, *read) if isinstance(one, DeviceBuffer)]
        if len(bound) != len(steps) or len(buffers) != len(written) + len(read):
            raise RunFailed("a chain takes steps and buffers of its own backend")
        graphs = self.options.cuda_graph and not any(step.runner.engine.streams_weights for step in bound)
        by_library = graphs and self.library.flavour == "tensorrt-rtx"
        own = tuple(step.in_own_context(graph=by_library) for step in bound)
        uploads, downloads = buffers[: len(written)], buffers[len(written) :]
        for buffer in uploads:
            buffer.defer()
        if graphs and not by_library:
            return StepGraph(self.device, own, uploads, downloads)
        return in_order_on_device(own, uploads, downloads)

    def unloaded(self) -> None:
        """A runner was closed. With the last one all memory goes back that nobody holds."""
        self._loaded -= 1
        if self._loaded == 0:
            self.memory.release()
            self.device.trim()

    def _runtime_cache(self, path: Path, engine: Engine) -> RuntimeCache | None:
        folder = self.options.runtime_cache_dir
        if folder is None or self.library.flavour != "tensorrt-rtx":
            return None
        return RuntimeCache(folder / f"{path.parent.name}.{path.stem}.rtx-cache", engine)


class RuntimeCache:
    """What TensorRT-RTX compiled for one engine on this GPU, kept in a file between processes."""

    def __init__(self, path: Path, engine: Engine) -> None:
        """Raises BadInput where the file could not be written in the end."""
        require_writable_file(path)
        self._path = path
        self.kernels = engine.new_runtime_cache(path.read_bytes() if path.is_file() else None)

    def save(self) -> None:
        """Write the file."""
        with replacing_file(self._path) as temporary:
            temporary.write_bytes(self.kernels.content())


class TensorRtRunner:
    """A graph as an engine: picks the profile by the shapes, and runs it in a context of that profile."""

    def __init__(
        self,
        backend: TensorRtBackend,
        name: str,
        inputs: Mapping[str, TensorInfo],
        outputs: Mapping[str, TensorInfo],
        engine: Engine,
        cache: RuntimeCache | None,
    ) -> None:
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._backend, self._engine, self._cache = backend, engine, cache
        self._extents = [{one: engine.extents(one, profile) for one in inputs} for profile in range(engine.profiles)]
        self._aliases = {output: engine.aliased_input(output) for output in outputs}
        self._contexts: dict[int, BoundContext] = {}
        self._closed = False

    @property
    def engine(self) -> Engine:
        """The loaded engine."""
        self.require_open()
        return self._engine

    def require_open(self) -> None:
        """Raises RunFailed after `close`."""
        if self._closed:
            raise RunFailed(f"the {self.name} graph was closed; open the session again")

    def bind(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> BoundStep:
        """See `Runner.bind`. Refuses outputs that overlap an input, but for a cache and its update."""
        self.require_open()
        symbols: dict[str, int] = {}
        check_bindings(self.name, "inputs", self.inputs, feeds, symbols)
        check_bindings(self.name, "outputs", self.outputs, results, symbols)
        ours, theirs = _on_device(feeds), _on_device(results)
        self._check_aliases(ours, theirs)
        return BoundStep(self, self._profile_for(ours), ours, theirs)

    def run(self, feeds: Mapping[str, Buffer], results: Mapping[str, Buffer]) -> None:
        """See `Runner.run`."""
        self.bind(feeds, results)()

    def close(self) -> None:
        """Wait for what runs, keep what was compiled, and drop engine and contexts."""
        if self._closed:
            return
        self._closed = True
        try:
            self._backend.device.stream.synchronize()
            if self._cache is not None:
                self._cache.save()
        finally:  # whatever failed, it is not tried again
            self._contexts.clear()
            del self._engine, self._cache
            self._backend.unloaded()

    def context(self, profile: int) -> BoundContext:
        """The context that all steps of a profile share; made when it is first needed."""
        if profile not in self._contexts:
            self._contexts[profile] = self.new_context(profile)
        return self._contexts[profile]

    def new_context(self, profile: int, *, graph: bool = False) -> BoundContext:
        """Another context, e.g. for a captured graph, which must not see other shapes."""
        stream = self._backend.device.stream
        kernels = self._cache.kernels if self._cache is not None else None
        context = self.engine.new_context(profile, stream.address, own_graph=graph, kernels=kernels)
        stream.mark()
        return BoundContext(self._backend.device, self._backend.memory, context)

    def _profile_for(self, feeds: Mapping[str, DeviceBuffer]) -> int:
        """The first that has these shapes: decode before prefill."""
        for number, extents in enumerate(self._extents):
            if all(_within(feeds[name].shape, *extents[name]) for name in feeds):
                return number
        shapes = {name: buffer.shape for name, buffer in feeds.items() if "cache" not in name}
        ranges = [{name: extents[name] for name in shapes} for extents in self._extents]
        raise RunFailed(
            f"{self.name}: no profile of the engine has the shapes {shapes}; they are {ranges}; build it again with "
            "a larger --max-batch or --max-context"
        )

    def _check_aliases(self, feeds: Mapping[str, DeviceBuffer], results: Mapping[str, DeviceBuffer]) -> None:
        for output, result in results.items():
            shared = [name for name, feed in feeds.items() if _overlap(result, feed)]
            updated = output.removesuffix("_out")
            if shared not in ([], [updated]) or (shared and result.pointer != feeds[updated].pointer):
                raise RunFailed(
                    f"{self.name}: output {output} lies in the memory of input {shared[0]}; only a cache may, with its "
                    "own update"
                )
            wanted = self._aliases[output]
            if wanted is not None and shared != [wanted]:
                raise RunFailed(
                    f"{self.name}: output {output} updates {wanted} in place and must be bound to the same buffer"
                )


class BoundContext:
    """A context, and which step's shapes and addresses it has."""

    def __init__(self, device: Device, memory: WorkingMemory, context: Context) -> None:
        self._device, self._memory, self._context = device, memory, context
        self._step = -1
        self._block: Block | None = None

    def enqueue(self, step: BoundStep) -> None:
        """Tell it what changed since it last ran, and enqueue it."""
        block = self._memory.block
        if block is not self._block and block is not None:
            self._context.set_memory(block.pointer, block.size_bytes)
            self._block = block
        if self._step != step.number:
            self._step = -1  # if a call below fails, it has half of each
            for name, buffer in step.feeds.items():
                self._context.set_shape(name, buffer.shape)
            for name, buffer in (*step.feeds.items(), *step.results.items()):
                self._context.set_address(name, buffer.pointer)
            self._step = step.number
        self._context.enqueue(self._device.stream.address)
        self._device.stream.mark()


class BoundStep:
    """A run with everything in its place; keeps the buffers, of which TensorRT knows only the addresses."""

    _numbers = itertools.count()

    def __init__(
        self,
        runner: TensorRtRunner,
        profile: int,
        feeds: Mapping[str, DeviceBuffer],
        results: Mapping[str, DeviceBuffer],
        context: BoundContext | None = None,
    ) -> None:
        self.runner, self.profile, self.feeds, self.results = runner, profile, feeds, results
        self.number = next(self._numbers)
        self._context = context

    def __call__(self) -> None:
        self.runner.require_open()
        for buffer in self.results.values():
            buffer.changed()
        (self._context or self.runner.context(self.profile)).enqueue(self)

    def in_own_context(self, *, graph: bool) -> BoundStep:
        """The same in a context that nothing else uses."""
        context = self.runner.new_context(self.profile, graph=graph)
        return BoundStep(self.runner, self.profile, self.feeds, self.results, context)


def _as_built(declared: Sequence[TensorInfo], engine: Engine) -> dict[str, TensorInfo]:
    """The graph's tensors with the numbers that the build wrote in: caches have one length."""
    tensors = engine.tensors
    found = {}
    for tensor in declared:
        facts = tensors.get(tensor.name)
        dims = tensor.dims
        if facts is not None and len(facts.dims) == len(dims):
            dims = tuple(
                built if dim == "cache_length" and built > 0 else dim
                for dim, built in zip(dims, facts.dims, strict=True)
            )
        found[tensor.name] = TensorInfo(tensor.name, tensor.dtype, dims)
    return found


def _on_device(buffers: Mapping[str, Buffer]) -> dict[str, DeviceBuffer]:
    foreign = [name for name, buffer in buffers.items() if not isinstance(buffer, DeviceBuffer)]
    if foreign:
        raise RunFailed(f"{foreign[0]} is not on the device; expected a buffer of the backend tensorrt")
    return {name: buffer for name, buffer in buffers.items() if isinstance(buffer, DeviceBuffer)}


def _within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    return len(shape) == len(least) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))


def _overlap(one: DeviceBuffer, other: DeviceBuffer) -> bool:
    return one.pointer < other.pointer + other.size_bytes and other.pointer < one.pointer + one.size_bytes
