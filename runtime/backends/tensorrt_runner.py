"""One engine: profiles chosen by shapes, contexts that share memory, and bound steps."""

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
    """The block of memory shared by all contexts, which run one after the other on the stream."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.block: Block | None = None

    def release(self) -> None:
        """Free the memory, when no engine is loaded any more."""
        self.block = None

    def require(self, size_bytes: int) -> None:
        """Grow it to at least `size_bytes`; contexts keep the smaller block until they get the new one."""
        if self.block is None or self.block.size_bytes < size_bytes:
            self.block = self._device.memory.take(size_bytes)


class TensorRtRunner:
    """A graph as an engine: chooses the profile by the shapes, and runs it in a context of that profile."""

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
        """Args: on_close: called once, after engine and contexts are freed."""
        self.name, self.inputs, self.outputs = name, inputs, outputs
        self._device, self._memory, self._on_close = device, memory, on_close
        self._engine, self._cache = engine, cache
        self._extents = [{name: engine.extents(name, profile) for name in inputs} for profile in range(engine.profiles)]
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
        """See `Runner.bind`. Refuses outputs that overlap an input, except a cache and its update."""
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
        """Wait for running work, store compiled kernels, and free engine and contexts."""
        if self._closed:
            return
        self._closed = True
        try:
            # After a GPU fault every call fails; the error was raised where it occurred.
            with suppress(CudaFault):
                self._device.stream.synchronize()
                if self._cache is not None:
                    self._cache.save()
        finally:  # also after an error: close is not retried
            with suppress(CudaFault), self._device.cuda.current():
                self._contexts.clear()
                del self._engine, self._cache
            with suppress(CudaFault):
                self._on_close()

    def context(self, profile: int) -> BoundContext:
        """The context shared by all steps of a profile; created on first use."""
        if profile not in self._contexts:
            self._contexts[profile] = self.new_context(profile)
        return self._contexts[profile]

    def new_context(self, profile: int, *, graph: bool = False) -> BoundContext:
        """A separate context, e.g. for a captured graph, which must not be used with other shapes."""
        stream = self._device.stream
        kernels = self._cache.kernels if self._cache is not None else None
        with self._device.cuda.current():
            context = self.engine.new_context(
                profile, stream.address, own_graph=graph, few_shapes=self._has_few_shapes(profile), kernels=kernels
            )
        stream.mark()
        return BoundContext(self._device, self._memory, context)

    def _has_few_shapes(self, profile: int) -> bool:
        """Whether only the batch varies between requests, as in a decode step, and not the length of a prompt."""
        return all(least[1:] == most[1:] for least, most in self._extents[profile].values())

    def _profile_for(self, feeds: Mapping[str, DeviceBuffer]) -> int:
        """The first profile that contains these shapes: decode before prefill."""
        for number, extents in enumerate(self._extents):
            if all(_within(feeds[name].shape, *extents[name]) for name in feeds):
                return number
        shapes = {name: buffer.shape for name, buffer in feeds.items() if not self.inputs[name].is_cache}
        ranges = [{name: extents[name] for name in shapes} for extents in self._extents]
        raise RunFailed(
            f"{self.name}: no profile of the engine contains the shapes {shapes}; profiles: {ranges}; build it again "
            "for a larger batch or a longer context"
        )

    def _check_aliases(self, feeds: Mapping[str, DeviceBuffer], results: Mapping[str, DeviceBuffer]) -> None:
        for output, result in results.items():
            shared = [name for name, feed in feeds.items() if _overlap(result, feed)]
            updated = self.outputs[output].of
            if shared not in ([], [updated]) or (shared and result.pointer != feeds[updated].pointer):
                raise RunFailed(
                    f"{self.name}: output {output} is in the memory of input {shared[0]}; only a cache and its "
                    "update may share memory"
                )
            wanted = self._aliases[output]
            if wanted is not None and shared != [wanted]:
                raise RunFailed(
                    f"{self.name}: output {output} updates {wanted} in place and must be bound to the same buffer"
                )


class BoundContext:
    """A context, and the step whose shapes and addresses are set."""

    def __init__(self, device: Device, memory: WorkingMemory, context: Context) -> None:
        self._device, self._memory, self._context = device, memory, context
        self._step = -1
        self._block: Block | None = None

    def enqueue(self, step: BoundStep) -> None:
        """Set shapes and addresses that changed since the last run, and enqueue it."""
        with self._device.cuda.current():
            self._prepare(step)
            self._context.enqueue(self._device.stream.address)
        self._device.stream.mark()

    def settled(self, step: BoundStep) -> bool:
        """Whether the last run was with the step's shapes and addresses, and nothing changed since."""
        return self._step == step.number and self._block is self._memory.block

    def _prepare(self, step: BoundStep) -> None:
        block = self._memory.block
        if block is not self._block and block is not None:
            self._context.set_memory(block.pointer, block.size_bytes)
            self._block = block
        if self._step == step.number:
            return
        self._step = -1  # if a call below fails, the state is mixed
        for name, buffer in step.feeds.items():
            self._context.set_shape(name, buffer.shape)
        for name, buffer in (*step.feeds.items(), *step.results.items()):
            self._context.set_address(name, step.place_of(buffer).pointer)
        self._step = step.number


class BoundStep:
    """A run with bound buffers; keeps them alive, because TensorRT has only their addresses.

    Where rows are not a multiple of 256 bytes wide, a view may be misaligned for TensorRT: it is then copied from and
    to a separate buffer.
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
        # An input and the output that updates it share one buffer.
        misplaced = [buffer for buffer in (*feeds.values(), *results.values()) if not buffer.aligned]
        self._places = {buffer.beginning: buffer.empty_like() for buffer in misplaced}

    def __call__(self) -> None:
        """Enqueue the step."""
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
        """Whether the next run changes nothing in the context."""
        return self._chosen_context().settled(self)

    def place_of(self, buffer: DeviceBuffer) -> DeviceBuffer:
        """The buffer that the engine uses: the buffer itself, if it is aligned."""
        return self._places.get(buffer.beginning, buffer)

    def in_own_context(self, *, graph: bool) -> BoundStep:
        """The step in a separate context."""
        context = self.runner.new_context(self.profile, graph=graph)
        return BoundStep(self.runner, self.profile, self.feeds, self.results, context)

    def _chosen_context(self) -> BoundContext:
        return self._context or self.runner.context(self.profile)


def as_built(declared: Sequence[TensorInfo], engine: Engine) -> dict[str, TensorInfo]:
    """The graph's tensors with the dims fixed by the build: caches have one length."""
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


def _overlap(first: DeviceBuffer, second: DeviceBuffer) -> bool:
    return first.pointer < second.pointer + second.size_bytes and second.pointer < first.pointer + first.size_bytes
