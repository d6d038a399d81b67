"""The interface to TensorRT and TensorRT-RTX at run time: load engines, create contexts, enqueue. Builds nothing.

Both libraries have one API; differences between them and between releases are handled only here. Errors name the
refused call and the library's log. Knows nothing about buffers or the meaning of graphs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from sdrpn.bundle.numerics import TENSORRT_TYPES
from sdrpn.errors import BadInput, MissingDependency, RunFailed
from sdrpn.host.libraries import TENSORRT_MODULES, tensorrt_module
from sdrpn.runtime.backends.mapped_file import MappedFile

__all__ = [
    "FLAVOURS",
    "CompiledKernels",
    "Context",
    "Engine",
    "Library",
    "Validity",
    "library_version",
    "open_library",
]

FLAVOURS = tuple(TENSORRT_MODULES)
# An engine is read in pieces of this size, so that it is never in host memory as a whole.
_PIECE_BYTES = 32 << 20

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Validity:
    """TensorRT-RTX's verdict on an engine from its header alone."""

    state: str  # VALID, SUBOPTIMAL or INVALID
    reasons: tuple[str, ...]  # names of EngineInvalidityDiagnostics
    message: str  # the library's log about it


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of a loaded engine; -1 is a dynamic dimension."""

    name: str
    is_input: bool
    dtype: str  # NumPy's name
    dims: Shape


class Library:
    """One imported flavour, with its log of warnings and errors."""

    def __init__(self, flavour: str, trt: Any) -> None:
        self.flavour = flavour
        self._trt = trt
        self.log = _logger(trt)

    def validity(self, path: Path) -> Validity | None:
        """TensorRT-RTX's own check, without loading the engine; None where the library has none."""
        trt = self._trt
        if self.flavour != "tensorrt-rtx":
            return None
        runtime = trt.Runtime(self.log)
        with path.open("rb") as stream:
            header = stream.read(runtime.engine_header_size)
        self.log.clear()
        state, bits = runtime.get_engine_validity(header)
        members = trt.EngineInvalidityDiagnostics.__members__
        reasons = tuple(name for name, member in members.items() if int(bits) & int(member))
        return Validity(state.name, reasons, self.log.last())

    def load(self, path: Path, *, host_code: bool = False) -> Engine:
        """Deserialise through a stream reader. Raises RunFailed where the library refuses.

        Args:
            host_code: allow the engine's code for the CPU; version-compatible engines do not load without it
        """
        trt = self._trt
        self.log.clear()
        runtime = trt.Runtime(self.log)
        if host_code and self.flavour == "tensorrt":
            runtime.engine_host_code_allowed = True
        try:
            with path.open("rb") as stream:
                engine = runtime.deserialize_cuda_engine(_reader(trt, stream))
        except RuntimeError as error:  # what the bindings raise without a driver
            raise RunFailed(f"{self.flavour} cannot load {path}: {' '.join(str(error).split())}") from error
        if engine is None:
            reason = self.log.last() or "it gave no reason"
            raise RunFailed(f"{self.flavour} refused Runtime.deserialize_cuda_engine({path.name}): {reason}")
        return Engine(self, path.name, runtime, engine)


class Engine:
    """A loaded engine: its tensors, and contexts to run it in."""

    def __init__(self, library: Library, name: str, runtime: Any, engine: Any) -> None:
        self.name = name
        self._library, self._trt = library, library._trt
        self._runtime, self._engine = runtime, engine  # the runtime must outlive its engines

    @property
    def tensors(self) -> dict[str, TensorFacts]:
        """Inputs and outputs by name."""
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: TensorFacts(
                name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                TENSORRT_TYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name.lower()),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
        }

    @property
    def profiles(self) -> int:
        """The number of optimisation profiles."""
        return int(self._engine.num_optimization_profiles)

    def extents(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """The minimum and maximum dims of an input in a profile."""
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)

    @property
    def activation_bytes(self) -> int:
        """The working memory of a context, for the largest profile."""
        return int(self._engine.device_memory_size_v2)

    def aliased_input(self, output: str) -> str | None:
        """The input whose memory an output shares; None where it shares none, or the release does not report it."""
        # from TensorRT 10.15 on, the first with in-place cache updates
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        return (ask(output) or None) if ask is not None else None

    @property
    def streams_weights(self) -> bool:
        """Whether weights are streamed from the host during a run, which CUDA graphs cannot capture."""
        streamable = int(self._engine.streamable_weights_size)
        return streamable > 0 and int(self._engine.weight_streaming_budget_v2) < streamable

    def stream_weights(self, budget_bytes: int | None) -> None:
        """Set how many bytes of weights stay on the device; before the first context is created.

        Args:
            budget_bytes: None: the library's default
        Raises: BadInput for an engine built without weight streaming
        """
        engine = self._engine
        if engine.streamable_weights_size == 0:
            if budget_bytes is not None:
                raise BadInput(f"{self.name} was built without weight streaming; build it with weight streaming")
            return
        automatic = budget_bytes is None
        engine.weight_streaming_budget_v2 = (
            engine.get_weight_streaming_automatic_budget() if automatic else budget_bytes
        )

    def new_runtime_cache(self, content: bytes | None) -> CompiledKernels:
        """A cache for kernels that TensorRT-RTX compiles at run time, filled from an earlier cache."""
        if self._library.flavour != "tensorrt-rtx":
            raise BadInput("only TensorRT-RTX has a runtime cache; leave it out for TensorRT")
        cache = self._engine.create_runtime_config().create_runtime_cache()
        if content:
            # The library rejects a cache of another release, and then starts with an empty one.
            cache.deserialize(content)
        return CompiledKernels(cache)

    def new_context(
        self,
        profile: int,
        stream: int,
        *,
        own_graph: bool = False,
        few_shapes: bool = False,
        kernels: CompiledKernels | None = None,
    ) -> Context:
        """A context for one profile, without its own memory.

        Args:
            stream: the stream for switching to the profile
            own_graph: let TensorRT-RTX capture the context's work as a CUDA graph
            few_shapes: allow it to compile kernels for every new shape
            kernels: the cache for compiled kernels
        """
        self._library.log.clear()
        context = self._context(own_graph, few_shapes, kernels)
        if context is None:
            self._refuse("ICudaEngine.create_execution_context")
        if not context.set_optimization_profile_async(profile, stream):
            self._refuse(f"IExecutionContext.set_optimization_profile_async({profile})")
        return Context(self, context)

    def _context(self, own_graph: bool, few_shapes: bool, kernels: CompiledKernels | None) -> Any:
        trt, engine = self._trt, self._engine
        managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._library.flavour == "tensorrt-rtx":
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            # By default (LAZY) it compiles in background threads and replaces kernels during runs: the same question
            # could have another answer the second time. So compile eagerly, or never for prompts of varying length.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if few_shapes else strategies.NONE
            if own_graph:
                config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if kernels is not None and not config.set_runtime_cache(kernels._cache):
                self._refuse("IRuntimeConfig.set_runtime_cache")
            return engine.create_execution_context(config)
        return engine.create_execution_context(managed)

    def _refuse(self, call: str) -> NoReturn:
        reason = self._library.log.last() or "it gave no reason"
        raise RunFailed(f"{self.name}: {self._library.flavour} refused {call}: {reason}")


class CompiledKernels:
    """Kernels that TensorRT-RTX compiles at run time, shared by the contexts of an engine."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def content(self) -> bytes:
        """The serialised cache, for a later process."""
        return bytes(self._cache.serialize())


class Context:
    """An execution context: shapes and addresses are set, then it can be enqueued many times."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._owner, self._context = engine, context

    def set_memory(self, pointer: int, size_bytes: int) -> None:
        """Set its working memory, which nothing else may use during a run."""
        self._context.set_device_memory(pointer, size_bytes)

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Set the shape of an input. Raises RunFailed where it is outside the profile."""
        if not self._context.set_input_shape(name, tuple(shape)):
            self._owner._refuse(f"IExecutionContext.set_input_shape({name}, {tuple(shape)})")

    def set_address(self, name: str, pointer: int) -> None:
        """Set the device address of an input or output."""
        if not self._context.set_tensor_address(name, pointer):
            self._owner._refuse(f"IExecutionContext.set_tensor_address({name})")

    def enqueue(self, stream: int) -> None:
        """Enqueue one run on a stream."""
        if not self._context.execute_async_v3(stream):
            self._owner._refuse("IExecutionContext.execute_async_v3")


def open_library(flavour: str) -> Library:
    """Import a library. Raises MissingDependency where it cannot be imported."""
    return Library(flavour, _module(flavour))


def library_version(flavour: str) -> str:
    """The full version. Raises MissingDependency where the library cannot be imported."""
    return str(_module(flavour).__version__)


def _module(flavour: str) -> Any:
    module = tensorrt_module(flavour, "Runtime")
    if module is not None:
        return module
    jetpack = " (on Jetson it comes with JetPack: python3 -m venv --system-site-packages)"
    raise MissingDependency(
        f"engines of {flavour} need it to run, and it is not installed; install it: pip install 'sdrpn[{flavour}]'"
        f"{jetpack if flavour == 'tensorrt' else ''}"
    )


# The libraries keep a pointer to the first logger and ignore later ones. So there is one logger per library, which is
# never freed.
_LOGGERS: dict[Any, Any] = {}


def _logger(trt: Any) -> Any:
    """A logger that keeps the last warnings and errors of every thread, to explain a refused call."""
    if trt in _LOGGERS:
        return _LOGGERS[trt]

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._threads = threading.local()

        def log(self, severity: Any, message: str) -> None:
            self._messages().append((int(severity), message))

        def clear(self) -> None:
            self._messages().clear()

        def last(self) -> str:
            """The last error, or the last message of lower severity where there is none."""
            messages = self._messages()
            errors = [text for severity, text in messages if severity <= int(trt.ILogger.ERROR)]
            others = [text for severity, text in messages if severity <= int(trt.ILogger.INFO)]
            return " ".join((errors or others or [""])[-1].split())

        def _messages(self) -> deque[tuple[int, str]]:
            """The messages of the calling thread."""
            if not hasattr(self._threads, "messages"):
                self._threads.messages = deque(maxlen=50)
            found: deque[tuple[int, str]] = self._threads.messages
            return found

    return _LOGGERS.setdefault(trt, Log())


def _reader(trt: Any, stream: BinaryIO) -> Any:
    """A stream reader, so that the library reads the file piece by piece."""
    base = getattr(trt, "IStreamReaderV2", None)
    if base is None:
        # TensorRT 10.3 reads sequentially, requests most of the file in one call, and copies it. A view of the mapped
        # file avoids a second copy of the engine.
        first, file = trt.IStreamReader, MappedFile(stream)

        class Reader(first):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()

            def read(self, size: int) -> memoryview:
                return file.read(size)

        return Reader()
    whence = {trt.SeekPosition.SET: 0, trt.SeekPosition.CUR: 1, trt.SeekPosition.END: 2}

    class ReaderV2(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()

        def read(self, num_bytes: int, stream_address: int) -> bytes:
            return stream.read(min(num_bytes, _PIECE_BYTES))

        def seek(self, offset: int, where: Any) -> bool:
            stream.seek(offset, whence[where])
            return True

    return ReaderV2()
