"""The seam to TensorRT and TensorRT-RTX at run time: load engines, make contexts, enqueue. Builds nothing.

Both libraries have one API; what differs between them and between their releases is decided here and nowhere else. A
call that is refused is named, with what the library logged about it. Knows nothing about buffers or graphs' meaning.
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
# An engine is handed over in pieces of this size, so that the host never holds all of it.
_PIECE_BYTES = 32 << 20

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Validity:
    """What TensorRT-RTX says of an engine from its header alone."""

    state: str  # VALID, SUBOPTIMAL or INVALID
    reasons: tuple[str, ...]  # names of EngineInvalidityDiagnostics
    message: str  # what it logged about it


@dataclass(frozen=True)
class TensorFacts:
    """A tensor of a loaded engine; -1 is a dynamic dimension."""

    name: str
    is_input: bool
    dtype: str  # as NumPy spells it
    dims: Shape


class Library:
    """One flavour, imported, with a log of what it complains of."""

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
            host_code: the engine may run the code for the CPU in it; version-compatible ones do not load without
        """
        trt = self._trt
        self.log.clear()
        runtime = trt.Runtime(self.log)
        if host_code and self.flavour == "tensorrt":
            runtime.engine_host_code_allowed = True
        try:
            with path.open("rb") as stream:
                engine = runtime.deserialize_cuda_engine(_reader(trt, stream))
        except RuntimeError as error:  # how the bindings say that there is no driver
            raise RunFailed(f"{self.flavour} cannot load {path}: {' '.join(str(error).split())}") from error
        if engine is None:
            reason = self.log.last() or "it gave no reason"
            raise RunFailed(f"{self.flavour} refused Runtime.deserialize_cuda_engine({path.name}): {reason}")
        return Engine(self, path.name, runtime, engine)


class Engine:
    """A loaded engine: what it takes and gives, and contexts to run it in."""

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
        """How many optimisation profiles it has."""
        return int(self._engine.num_optimization_profiles)

    def extents(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """The least and the most dims of an input in a profile."""
        least, _, most = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(least), tuple(most)

    @property
    def activation_bytes(self) -> int:
        """What a context works in, for the largest profile."""
        return int(self._engine.device_memory_size_v2)

    def aliased_input(self, output: str) -> str | None:
        """The input whose memory an output shares; None where it shares none, or the release cannot tell."""
        # from TensorRT 10.15 on, which has the in-place update of a cache
        ask = getattr(self._engine, "get_aliased_input_tensor", None)
        return (ask(output) or None) if ask is not None else None

    @property
    def streams_weights(self) -> bool:
        """Whether weights come from the host while it runs, which no CUDA graph can capture."""
        streamable = int(self._engine.streamable_weights_size)
        return streamable > 0 and int(self._engine.weight_streaming_budget_v2) < streamable

    def stream_weights(self, budget_bytes: int | None) -> None:
        """How many bytes of weights stay on the device; before the first context is made.

        Args:
            budget_bytes: None: as many as the library finds right
        Raises: BadInput for an engine that was not built for it
        """
        engine = self._engine
        if engine.streamable_weights_size == 0:
            if budget_bytes is not None:
                raise BadInput(f"{self.name} was built without weight streaming; build it with --weight-streaming")
            return
        automatic = budget_bytes is None
        engine.weight_streaming_budget_v2 = (
            engine.get_weight_streaming_automatic_budget() if automatic else budget_bytes
        )

    def new_runtime_cache(self, content: bytes | None) -> CompiledKernels:
        """A cache of what TensorRT-RTX compiles at run time, filled with what an earlier one held."""
        if self._library.flavour != "tensorrt-rtx":
            raise BadInput("only TensorRT-RTX has a runtime cache; leave it out for TensorRT")
        cache = self._engine.create_runtime_config().create_runtime_cache()
        if content:
            # Another release's cache is refused by the library, and then simply grows anew.
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
        """A context for one profile, without memory of its own.

        Args:
            stream: what the switch to the profile is enqueued on
            own_graph: TensorRT-RTX captures the context's work as a CUDA graph by itself
            few_shapes: it may compile kernels for every shape that it meets
            kernels: where it keeps what it compiles
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
            # Left to itself (LAZY) it compiles in threads of its own and swaps kernels in while it runs: the same
            # question would have another answer the second time. So at once, or never where each prompt has its length.
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
    """What TensorRT-RTX compiles at run time, shared by the contexts of an engine."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def content(self) -> bytes:
        """What a later process can start from."""
        return bytes(self._cache.serialize())


class Context:
    """An execution context: shapes and addresses are set, then it is enqueued, again and again."""

    def __init__(self, engine: Engine, context: Any) -> None:
        self._owner, self._context = engine, context

    def set_memory(self, pointer: int, size_bytes: int) -> None:
        """Where it works; nothing else may be there while it runs."""
        self._context.set_device_memory(pointer, size_bytes)

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Of an input. Raises RunFailed where the profile does not have it."""
        if not self._context.set_input_shape(name, tuple(shape)):
            self._owner._refuse(f"IExecutionContext.set_input_shape({name}, {tuple(shape)})")

    def set_address(self, name: str, pointer: int) -> None:
        """Of an input or output, on the device."""
        if not self._context.set_tensor_address(name, pointer):
            self._owner._refuse(f"IExecutionContext.set_tensor_address({name})")

    def enqueue(self, stream: int) -> None:
        """Run once, behind all that is on the stream."""
        if not self._context.execute_async_v3(stream):
            self._owner._refuse("IExecutionContext.execute_async_v3")


def open_library(flavour: str) -> Library:
    """Raises MissingDependency where the library cannot be imported."""
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


# The libraries keep a pointer to the first logger that they are given, and ignore later ones. So there is one for each,
# which is never freed.
_LOGGERS: dict[Any, Any] = {}


def _logger(trt: Any) -> Any:
    """Keeps the last complaints of every thread, which explain a refusal."""
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
            """The last error; of what was said less loudly the last, if there is none."""
            messages = self._messages()
            errors = [text for severity, text in messages if severity <= int(trt.ILogger.ERROR)]
            others = [text for severity, text in messages if severity <= int(trt.ILogger.INFO)]
            return " ".join((errors or others or [""])[-1].split())

        def _messages(self) -> deque[tuple[int, str]]:
            """Of the calling thread."""
            if not hasattr(self._threads, "messages"):
                self._threads.messages = deque(maxlen=50)
            found: deque[tuple[int, str]] = self._threads.messages
            return found

    return _LOGGERS.setdefault(trt, Log())


def _reader(trt: Any, stream: BinaryIO) -> Any:
    """The library reads the file through this, instead of being given all of it."""
    base = getattr(trt, "IStreamReaderV2", None)
    if base is None:
        # TensorRT 10.3 reads from the beginning to the end, asks for most of it in one call, and copies what it is
        # given. A view of the file spares a second copy of the engine.
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
