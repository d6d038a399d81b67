"""One engine: profiles picked by shapes, contexts that take turns, and steps with everything in its place."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from sdrpn.bundle.bundle import TensorInfo
from sdrpn.errors import RunFailed
from sdrpn.runtime.backends.cuda import CudaFault
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Block, Device
from sdrpn.runtime.backends.runner import Buffer, check_bindings
from sdrpn.runtime.backends.runtime_cache import RuntimeCache
from sdrpn.runtime.backends.tensorrt_library import Context, Engine

__all__ = ["BoundStep", "TensorRtRunner", "WorkingMemory", "as_built"]


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


class TensorRtRunner:
    """A graph as an engine: picks the profile by the shapes, and runs it in a context of that profile."""

    def __init__(
        self,
        device: Device,
        memory: WorkingMemory,
        name: str,
        inputs: Mapping[str, TensorInfo],
        outputs: Mapping[str, TensorInfo],
        engine: Engine,
        cache: RuntimeCache | None,
        on_close: Callable[[], None],
    ) -> None:
        """Args: on_close: called once, when engine and contexts are gone."""
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._device, self._memory, self._on_close = device, memory, on_close
        self._engine, self._cache = engine, cache
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
            # After a fault of the GPU every call fails; whoever ran something was told.
            with suppress(CudaFault):
                self._device.stream.synchronize()
                if self._cache is not None:
                    self._cache.save()
        finally:  # whatever failed, it is not tried again
            with suppress(CudaFault), self._device.cuda.current():
                self._contexts.clear()
                del self._engine, self._cache
            with suppress(CudaFault):
                self._on_close()

    def context(self, profile: int) -> BoundContext:
        """The context that all steps of a profile share; made when it is first needed."""
        if profile not in self._contexts:
            self._contexts[profile] = self.new_context(profile)
        return self._contexts[profile]

    def new_context(self, profile: int, *, graph: bool = False) -> BoundContext:
        """Another context, e.g. for a captured graph, which must not see other shapes."""
        stream = self._device.stream
        kernels = self._cache.kernels if self._cache is not None else None
        with self._device.cuda.current():
            context = self.engine.new_context(
                profile, stream.address, own_graph=graph, few_shapes=self._has_few_shapes(profile), kernels=kernels
            )
        stream.mark()
        return BoundContext(self._device, self._memory, context)

    def _has_few_shapes(self, profile: int) -> bool:
        """Whether nothing but the batch differs between requests, as in a decode step; not the length of a prompt."""
        return all(least[1:] == most[1:] for least, most in self._extents[profile].values())

    def _profile_for(self, feeds: Mapping[str, DeviceBuffer]) -> int:
        """The first that has these shapes: decode before prefill."""
        for number, extents in enumerate(self._extents):
            if all(_within(feeds[name].shape, *extents[name]) for name in feeds):
                return number
        shapes = {name: buffer.shape for name, buffer in feeds.items() if not self.inputs[name].is_cache}
        ranges = [{name: extents[name] for name in shapes} for extents in self._extents]
        raise RunFailed(
            f"{self.name}: no profile of the engine has the shapes {shapes}; they are {ranges}; build it again with "
            "a larger --max-batch or --max-context"
        )

    def _check_aliases(self, feeds: Mapping[str, DeviceBuffer], results: Mapping[str, DeviceBuffer]) -> None:
        for output, result in results.items():
            shared = [name for name, feed in feeds.items() if _overlap(result, feed)]
            updated = self.outputs[output].of
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
        with self._device.cuda.current():
            self._prepare(step)
            self._context.enqueue(self._device.stream.address)
        self._device.stream.mark()

    def settled(self, step: BoundStep) -> bool:
        """Whether it ran as the step wants it, and nothing changed since."""
        return self._step == step.number and self._block is self._memory.block

    def _prepare(self, step: BoundStep) -> None:
        block = self._memory.block
        if block is not self._block and block is not None:
            self._context.set_memory(block.pointer, block.size_bytes)
            self._block = block
        if self._step == step.number:
            return
        self._step = -1  # if a call below fails, it has half of each
        for name, buffer in step.feeds.items():
            self._context.set_shape(name, buffer.shape)
        for name, buffer in (*step.feeds.items(), *step.results.items()):
            self._context.set_address(name, step.place_of(buffer).pointer)
        self._step = step.number


class BoundStep:
    """A run with everything in its place; keeps the buffers, of which TensorRT knows only the addresses.

    Where rows are not a multiple of 256 bytes wide, a view may begin where no tensor may: it is then copied to and from
    a place of its own.
    """

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
        # An input and the output that updates it have one place.
        misplaced = [buffer for buffer in (*feeds.values(), *results.values()) if not buffer.aligned]
        self._places = {buffer.beginning: buffer.empty_like() for buffer in misplaced}

    def __call__(self) -> None:
        """Enqueue it."""
        self.runner.require_open()
        for buffer in self.feeds.values():
            if not buffer.aligned:
                self.place_of(buffer).copy_from(buffer)
        for buffer in self.results.values():
            buffer.changed()
        self._chosen_context().enqueue(self)
        for buffer in self.results.values():
            if not buffer.aligned:
                buffer.copy_from(self.place_of(buffer))
        for buffer in (*self.feeds.values(), *self.results.values()):
            buffer.used()

    @property
    def settled(self) -> bool:
        """Whether the next run changes nothing in its context."""
        return self._chosen_context().settled(self)

    def place_of(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """Where the engine finds it: where it is, if that may be."""
        return self._places.get(buffer.beginning, buffer)

    def in_own_context(self, *, graph: bool) -> BoundStep:
        """The same in a context that nothing else uses."""
        context = self.runner.new_context(self.profile, graph=graph)
        return BoundStep(self.runner, self.profile, self.feeds, self.results, context)

    def _chosen_context(self) -> BoundContext:
        return self._context or self.runner.context(self.profile)


def as_built(declared: Sequence[TensorInfo], engine: Engine) -> dict[str, TensorInfo]:
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
        found[tensor.name] = dataclasses.replace(tensor, dims=dims)
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
