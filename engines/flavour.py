"""The interface to TensorRT and TensorRT-RTX: one API that hides the differences between them and between releases.

The only build module that imports either. `tensorrt` compiles for the GPU that it runs on; `tensorrt-rtx` for any of
its compute capabilities, without a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sdrpn.bundle.engine_manifest import EngineTensor
from sdrpn.bundle.numerics import TENSORRT_TYPES
from sdrpn.engines.layers import is_told
from sdrpn.engines.profiles import Shapes
from sdrpn.errors import BadInput, EngineNotBuilt, MissingDependency, RunFailed
from sdrpn.host.libraries import tensorrt_module

__all__ = ["CompileRequest", "Compiled", "combined_timing_caches", "compile_graph", "library_module", "library_version"]

_MOST_ERRORS = 100  # the last ones explain a failure
_ALWAYS_SAID = ("Thread context has not been set", "CUDA driver version is insufficient")

# TensorRT's names for options.VERBOSITIES.
_VERBOSITIES = {"detailed": "DETAILED", "names": "LAYER_NAMES_ONLY", "none": "NONE"}

Progress = Callable[[str, str, "str | None", int], None]  # (event, phase, parent, number)


@dataclass(frozen=True)
class CompileRequest:
    """The input of a compilation."""

    flavour: str
    graph_file: str  # weights are found relative to it
    graph: bytes
    compute_capabilities: tuple[str, ...]
    profiles: Mapping[str, Shapes]  # in order of their indices
    opt_level: int | None
    workspace_bytes: int | None
    weight_streaming: bool = False
    hardware_compat: bool = False
    version_compatible: bool = False
    refit: bool = False
    verbosity: str = "detailed"
    decompose_attention: bool = False  # allow primitive operators where there is no fused kernel
    timing_cache: bytes | None = None  # measurements of earlier builds, possibly empty; None: do not use a cache


@dataclass(frozen=True)
class Compiled:
    """The result of a compilation."""

    plan: Any  # a buffer
    tensors: tuple[EngineTensor, ...]
    messages: tuple[str, ...]  # log lines about kernels and memory
    hardware_compatibility: str  # the name of the level that the library used
    timing_cache: bytes | None  # including the measurements of this build


def library_version(flavour: str) -> str:
    """The full version of the library. Raises MissingDependency where it cannot be imported."""
    return str(library_module(flavour).__version__)


def compile_graph(request: CompileRequest, progress: Progress) -> Compiled:
    """Parse one graph and build its engine, strongly typed: the graph determines precisions.

    Raises:
        BadInput: the parser rejects the graph, or the library does not support a compute capability
        EngineNotBuilt: the library built no engine
        RunFailed: the library did not start, or rejected a profile
    """
    trt = library_module(request.flavour)
    log = _logger(trt)
    builder = _builder(trt, log, request.flavour)
    network = builder.create_network(_strongly_typed(trt))
    _parse(trt, network, log, request)
    if request.decompose_attention:
        for attention in _attentions(trt, network):
            attention.decomposable = True
    config = builder.create_builder_config()
    _configure(trt, config, request)
    timing = _timing_cache(trt, config, request)
    for name, shapes in request.profiles.items():
        _add_profile(builder, config, log, name, shapes)
    monitor = _monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineNotBuilt(_no_engine(request, log))
    return Compiled(
        plan,
        _tensors(network, request.profiles),
        tuple(log.listed),
        config.hardware_compatibility_level.name,
        None if timing is None else bytes(config.get_timing_cache().serialize()),
    )


def combined_timing_caches(flavour: str, first: bytes, second: bytes) -> bytes:
    """The measurements of both. Raises RunFailed where the library cannot combine them."""
    trt = library_module(flavour)
    config = trt.Builder(_logger(trt)).create_builder_config()
    cache, other = config.create_timing_cache(first), config.create_timing_cache(second)
    if cache is None or other is None or not cache.combine(other, False):
        raise RunFailed(f"{flavour} {trt.__version__} cannot combine two timing caches; remove the file")
    return bytes(cache.serialize())


def library_module(flavour: str) -> Any:
    """The library itself. Raises MissingDependency where it cannot be imported."""
    library = tensorrt_module(flavour, "Builder")
    if library is not None:
        return library
    here = "comes with JetPack (python3 -m venv --system-site-packages), elsewhere: " if flavour == "tensorrt" else ""
    raise MissingDependency(
        f"{flavour} is not installed here; it {here or 'installs with '}pip install 'sdrpn[{flavour}]'"
    )


def _builder(trt: Any, log: Any, flavour: str) -> Any:
    try:
        return trt.Builder(log)
    except (TypeError, RuntimeError) as error:  # what the bindings raise where the library returns a null pointer
        reason = " ".join((log.last_error(usual=True) or str(error)).split())
        raise RunFailed(f"{flavour} cannot start: {reason}; sdrpn doctor shows the driver and the GPU") from error


def _strongly_typed(trt: Any) -> int:
    """The network flags: TensorRT before 11 needs one; later releases and TensorRT-RTX are always strongly typed."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(trt: Any, network: Any, log: Any, request: CompileRequest) -> None:
    parser = trt.OnnxParser(network, log)
    if parser.parse(request.graph, request.graph_file):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [f"{error.node_operator()} {error.node_name()}: {error.desc()}".strip() for error in errors]
    reason = reasons[0] if reasons else log.last_error()
    raise BadInput(
        f"{request.flavour} {trt.__version__} cannot read {request.graph_file}: {reason}; "
        "export the other dialect, or build with a newer release"
    )


def _attentions(trt: Any, network: Any) -> Iterator[Any]:
    """The attention layers of the network, each once; releases before 10.14 have none."""
    output = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)
    if output is None:
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == output:
            layer.__class__ = trt.IAttentionOutputLayer  # the bindings return every layer as an ILayer
            yield layer.attention


def _configure(trt: Any, config: Any, request: CompileRequest) -> None:
    if request.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = len(request.compute_capabilities)
        for index, name in enumerate(request.compute_capabilities):
            capability = getattr(trt.ComputeCapability, name, None)
            if capability is None:
                known = ", ".join(
                    level_name for level_name in dir(trt.ComputeCapability) if level_name.startswith("SM")
                )
                raise BadInput(f"tensorrt-rtx {trt.__version__} does not build for {name}; it supports {known}")
            if not config.set_compute_capability(capability, index):
                raise BadInput(f"tensorrt-rtx {trt.__version__} does not take {name} as one of several; leave it out")
    config.profiling_verbosity = getattr(trt.ProfilingVerbosity, _VERBOSITIES[request.verbosity])
    if request.opt_level is not None:
        config.builder_optimization_level = request.opt_level
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    for wanted, flag in (
        (request.weight_streaming, trt.BuilderFlag.WEIGHT_STREAMING),
        (request.version_compatible, trt.BuilderFlag.VERSION_COMPATIBLE),
        (request.refit, trt.BuilderFlag.REFIT),
    ):
        if wanted:
            config.set_flag(flag)
    if request.hardware_compat:
        level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        config.hardware_compatibility_level = level
        if config.hardware_compatibility_level != level:  # an unsupported setter is ignored without an error
            raise BadInput(
                f"{request.flavour} {trt.__version__} does not support hardware compatibility: its level stays "
                f"{config.hardware_compatibility_level.name}; leave it out",
                options=("hardware_compat",),
            )


def _add_profile(builder: Any, config: Any, log: Any, name: str, shapes: Shapes) -> None:
    profile = builder.create_optimization_profile()
    for tensor, extents in shapes.items():
        profile.set_shape(tensor, *extents)
    if config.add_optimization_profile(profile) < 0:
        raise RunFailed(f"the library rejected profile {name} without a reason: {dict(shapes)}")


def _timing_cache(trt: Any, config: Any, request: CompileRequest) -> Any:
    """The timing cache that the build reads and extends, or None."""
    if request.timing_cache is None:
        return None
    cache = config.create_timing_cache(request.timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        raise BadInput(
            f"{request.flavour} {trt.__version__} does not accept this timing cache, which was written by another "
            "release or kind of GPU; name another file",
            options=("timing_cache",),
        )
    return cache


def _no_engine(request: CompileRequest, log: Any) -> str:
    message = f"{request.flavour} built no engine from {request.graph_file}: {log.last_error() or 'it gave no reason'}"
    if request.workspace_bytes is not None:
        return (
            f"{message}; a workspace of {request.workspace_bytes >> 20} MB may be too small: raise it or leave it out"
        )
    return f"{message}; try a lower optimization level, or another release of the library"


def _tensors(network: Any, profiles: Mapping[str, Shapes]) -> tuple[EngineTensor, ...]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(
        EngineTensor(
            tensor.name,
            mode,
            TENSORRT_TYPES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            tuple(tensor.shape),
            _shapes(tensor.name, profiles) if mode == "input" else (),
        )
        for mode, tensors in (("input", inputs), ("output", outputs))
        for tensor in tensors
    )


def _shapes(name: str, profiles: Mapping[str, Shapes]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(shapes[name] for shapes in profiles.values() if name in shapes)


def _logger(trt: Any) -> Any:
    """A logger that keeps errors and lines about kernels and memory: a full verbose log may have hundreds of MB."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.listed: list[str] = []
            self._errors: deque[str] = deque(maxlen=_MOST_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self._errors.append(message)
            else:
                self.listed += filter(is_told, message.splitlines())

        def last_error(self, *, usual: bool = False) -> str:
            """The last error; those that occur in every build only if `usual`."""
            # TensorRT-RTX logs these in every build without a GPU.
            found = [
                text for text in self._errors if usual or not any(usual_text in text for usual_text in _ALWAYS_SAID)
            ]
            return found[-1] if found else ""

    return Log()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress("start", phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            progress("finish", phase_name, None, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress("step", phase_name, None, step)
            return True

    return Monitor()
