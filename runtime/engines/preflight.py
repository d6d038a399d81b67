"""Check whether engines fit their bundle and this machine, before any of them is loaded. Builds and loads nothing.

The reasons are those of TensorRT-RTX's own check, which also runs if it is available. Every problem is one line: the
field, the engine's value, the value here, and the command that fixes it.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sdrpn.bundle.bundle import SMALL_FILE_BYTES, GraphInfo, TensorInfo, file_digest
from sdrpn.bundle.engine_manifest import EngineManifest, EngineTensor
from sdrpn.bundle.graphs import graph_named
from sdrpn.bundle.numerics import NUMBER_TYPES
from sdrpn.errors import BadBundle, EngineMismatch
from sdrpn.host.listed_files import require_loadable
from sdrpn.host.sizes import text_from_bytes
from sdrpn.runtime.backends.tensorrt_library import FLAVOURS, Validity, open_library
from sdrpn.runtime.engines.engine_set import EngineFile, EngineSet
from sdrpn.runtime.engines.platform import Platform

__all__ = ["REASONS", "Problem", "check_engines", "device_bytes", "require_fit"]

# EngineInvalidityDiagnostics of TensorRT-RTX.
REASONS = (
    "VERSION_MISMATCH",
    "UNSUPPORTED_CC",
    "OLD_CUDA_DRIVER",
    "OLD_CUDA_RUNTIME",
    "INSUFFICIENT_GPU_MEMORY",
    "MALFORMED_ENGINE",
    "CUDA_ERROR",
)
_AMPERE_PLUS = "AMPERE_PLUS"  # HardwareCompatibilityLevel


@dataclass(frozen=True)
class Problem:
    """Why an engine must not be loaded here."""

    graph: str  # several names are separated by commas
    reason: str  # one of REASONS
    field: str
    engine: str  # the engine's value
    here: str  # the value of the bundle or the machine
    mend: str

    @property
    def broken(self) -> bool:
        """Whether the engine itself is faulty, and would be refused on every machine."""
        return self.reason == "MALFORMED_ENGINE"

    def __str__(self) -> str:
        return f"{self.graph}: {self.reason}: {self.field} is {self.engine}, {self.here}; {self.mend}"


def check_engines(
    engines: EngineSet, platform: Platform, *, verify: bool = True, max_batch: int | None = None
) -> tuple[Problem, ...]:
    """Compare all engines of a target with the bundle, with each other and with the machine.

    Args:
        max_batch: sequences that are to be decoded together; None: as many as a decode step takes
        verify: hash every engine; False: large ones only if size or time differ from the build
    """
    broken = tuple(_broken(engines, verify))
    if broken:  # nothing else can be checked then
        return _joined(broken)
    found = [*_machine(engines, platform), *_memory(engines, platform, max_batch)]
    return _joined(found or _by_library(engines))


def require_fit(engines: EngineSet, platform: Platform, *, verify: bool = True, max_batch: int | None = None) -> None:
    """Raises EngineMismatch with the first problem, and how many there are."""
    problems = check_engines(engines, platform, verify=verify, max_batch=max_batch)
    if problems:
        inspect = f"sdrpn inspect {shlex.quote(str(engines.bundle.path))} --engines"
        more = f" ({len(problems)} problems; {inspect} shows all)"
        raise EngineMismatch(f"engines of {engines.target}: {problems[0]}{more if len(problems) > 1 else ''}")


def device_bytes(engines: EngineSet, max_batch: int | None = None) -> int:
    """What one session takes: weights that are not streamed, caches and taps of its sequences, the largest activations.

    Args: max_batch: sequences that are decoded together; None: as many as a decode step takes
    """
    batch = engines.max_batch if max_batch is None else max_batch
    manifests = engines.manifests.values()
    weights = sum(manifest.engine.size_bytes for manifest in manifests if not manifest.weight_streaming)
    activations = max((manifest.activation_bytes or 0 for manifest in manifests), default=0)
    caches = sum(_cache_bytes(engines.variant.graphs[name], manifest) for name, manifest in engines.manifests.items())
    taps = engines.max_context * engines.bundle.spec.llm.width * 4
    return weights + activations + batch * (caches + taps)


def _joined(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Join the same problem of several graphs into one."""
    graphs: dict[Problem, list[str]] = {}
    for problem in problems:
        graphs.setdefault(dataclasses.replace(problem, graph=""), []).append(problem.graph)
    return tuple(dataclasses.replace(problem, graph=", ".join(names)) for problem, names in graphs.items())


def _cache_bytes(graph: GraphInfo, manifest: EngineManifest) -> int:
    """Bytes of the caches of one sequence, at the engine's length."""
    caches = [tensor for tensor in graph.inputs if tensor.is_cache]
    rows = {"batch": 1, "cache_length": manifest.max_context}
    return sum(
        math.prod(rows[dim] if isinstance(dim, str) else dim for dim in cache.dims)
        * NUMBER_TYPES[cache.dtype].size_bytes
        for cache in caches
    )


def _broken(engines: EngineSet, verify: bool) -> Iterator[Problem]:
    rebuild = f"build it again: {engines.build_command}"
    looks = ', or open what is there with parts="look"' if engines.looks else ""
    for graph in engines.missing:
        yield _malformed(graph, "engine", "not there", "the model needs it", f"{rebuild}{looks}")
    for engine in engines.engines.values():
        if engine.manifest is None:
            yield _malformed(engine.graph, "manifest", "not to be trusted", engine.fault or "", rebuild)
            continue
        yield from _misplaced(engines, engine, engine.manifest, rebuild)
        yield from _stale(engines, engine.manifest, rebuild)
        yield from _unlike_graph(engines, engine.manifest, rebuild)
        yield from _changed(engines, engine, engine.manifest, rebuild, verify)
    yield from _unlike_each_other(engines, rebuild)


def _malformed(graph: str, field: str, engine: object, here: str, mend: str) -> Problem:
    return Problem(graph, "MALFORMED_ENGINE", field, str(engine), here, mend)


def _misplaced(engines: EngineSet, one: EngineFile, manifest: EngineManifest, mend: str) -> Iterator[Problem]:
    """A manifest in the wrong place, or with unknown or empty fields."""
    for field, value, expected in (("graph", manifest.graph, one.graph), ("target", manifest.target, engines.target)):
        if value != expected:
            yield _malformed(one.graph, field, value, f"it lies where that of {expected} belongs", mend)
    if manifest.flavour not in FLAVOURS:
        yield _malformed(one.graph, "flavour", manifest.flavour, f"known are {', '.join(FLAVOURS)}", mend)
    if not manifest.compute_capabilities:
        yield _malformed(one.graph, "compute_capabilities", "empty", "an engine is for at least one", mend)


def _stale(engines: EngineSet, manifest: EngineManifest, mend: str) -> Iterator[Problem]:
    """Differences from the bundle, which was exported again since."""
    bundle = engines.bundle.manifest
    variant = bundle.variants.get(manifest.variant)
    if variant is None:
        there = ", ".join(sorted(bundle.variants))
        yield _malformed(manifest.graph, "variant", manifest.variant, f"the bundle has {there}", mend)
        return
    if manifest.precision != variant.precision:
        here = f"{variant.name} is {variant.precision}"
        yield _malformed(manifest.graph, "precision", manifest.precision, here, mend)
    if manifest.max_context > bundle.max_context:
        here = f"the bundle's is {bundle.max_context}"
        yield _malformed(manifest.graph, "max_context", manifest.max_context, here, mend)
    if not manifest.contexts or manifest.contexts[-1] != manifest.max_context:
        here = f"max_context is {manifest.max_context}"
        yield _malformed(manifest.graph, "contexts", manifest.contexts, here, mend)
    graph = variant.graphs.get(manifest.graph)
    wanted = {graph.file, *graph.weights} if graph is not None else set()
    if manifest.sources.keys() != wanted:
        here = f"the bundle's graph is made of {', '.join(sorted(wanted)) or 'nothing'}"
        yield _malformed(manifest.graph, "sources", ", ".join(sorted(manifest.sources)), here, mend)
        return
    for name, stamp in manifest.sources.items():
        if stamp.sha256 != bundle.files[name].sha256:
            here = f"the bundle has {bundle.files[name].sha256[:12]}..."
            yield _malformed(manifest.graph, f"sources[{name}]", f"{stamp.sha256[:12]}...", here, mend)


def _unlike_graph(engines: EngineSet, manifest: EngineManifest, mend: str) -> Iterator[Problem]:
    """Differences of inputs, outputs and profiles from the bundle's graph."""
    variant = engines.bundle.manifest.variants.get(manifest.variant)
    graph = variant.graphs.get(manifest.graph) if variant is not None else None
    if graph is None:
        return
    found = {tensor.name: tensor for tensor in manifest.tensors}
    for mode, wanted in (("input", graph.inputs), ("output", graph.outputs)):
        names = sorted(tensor.name for tensor in manifest.tensors if tensor.mode == mode)
        if names != sorted(tensor.name for tensor in wanted):
            here = f"the graph has {', '.join(tensor.name for tensor in wanted)}"
            yield _malformed(manifest.graph, f"{mode}s", ", ".join(names), here, mend)
            return
        for tensor in wanted:
            yield from _unlike_tensor(manifest, found[tensor.name], tensor, mend)


def _unlike_tensor(manifest: EngineManifest, tensor: EngineTensor, wanted: TensorInfo, mend: str) -> Iterator[Problem]:
    if tensor.dtype != wanted.dtype:
        yield _malformed(manifest.graph, f"type of {tensor.name}", tensor.dtype, f"the graph's is {wanted.dtype}", mend)
    # With several contexts the length of the caches depends on the profile.
    length = manifest.max_context if len(manifest.contexts) == 1 else "cache_length"
    dims = tuple(length if dim == "cache_length" else dim for dim in wanted.dims)
    alike = len(dims) == len(tensor.dims) and all(
        mine == -1 if isinstance(dim, str) else mine == dim for mine, dim in zip(tensor.dims, dims, strict=True)
    )
    if not alike:
        yield _malformed(manifest.graph, f"shape of {tensor.name}", tensor.dims, f"the graph's is {dims}", mend)
    dynamic = tensor.mode == "input" and -1 in tensor.dims
    if len(tensor.profiles) != (len(manifest.profiles) if dynamic else 0):
        here = f"the engine has {', '.join(manifest.profiles) or 'none'}"
        yield _malformed(manifest.graph, f"profiles of {tensor.name}", len(tensor.profiles), here, mend)


def _changed(
    engines: EngineSet, one: EngineFile, manifest: EngineManifest, mend: str, verify: bool
) -> Iterator[Problem]:
    """Differences of the file in place, kind, size or digest."""
    stamp = manifest.engine
    try:
        status = require_loadable(one.path, engines.bundle.roots, mend)
        if status.st_size != stamp.size_bytes:
            here = f"the file has {status.st_size}"
            yield _malformed(one.graph, "engine.size_bytes", stamp.size_bytes, here, mend)
            return
        if not verify and status.st_mtime_ns == stamp.modified_ns and status.st_size > SMALL_FILE_BYTES:
            return
        digest = file_digest(one.path)
    except OSError as error:
        yield _malformed(one.graph, "engine", "not to be read", f"{one.path}: {error.strerror}", mend)
        return
    except BadBundle as error:
        yield _malformed(one.graph, "engine", "not to be loaded", str(error).removesuffix(f"; {mend}"), mend)
        return
    if digest != stamp.sha256:
        yield _malformed(one.graph, "engine.sha256", f"{stamp.sha256[:12]}...", f"the file has {digest[:12]}...", mend)


def _unlike_each_other(engines: EngineSet, mend: str) -> Iterator[Problem]:
    """Engines that do not work together, since all graphs share one set of caches."""
    manifests = engines.manifests
    if not manifests:
        return
    first = next(iter(manifests.values()))
    for graph, manifest in manifests.items():
        reference = manifests.get("trunk", first)
        lengths = "contexts" if manifest.max_context == reference.max_context else "max_context"
        for field in ("variant", "flavour", *((lengths,) if graph_named(graph).has_caches else ())):
            mine, theirs = getattr(manifest, field), getattr(reference, field)
            if mine != theirs:
                yield _malformed(graph, field, mine, f"that of {reference.graph} is {theirs}", mend)


def _machine(engines: EngineSet, platform: Platform) -> Iterator[Problem]:
    for graph, manifest in engines.manifests.items():
        yield from _library(engines, graph, manifest, platform)
        yield from _system(engines, graph, manifest, platform)
        yield from _gpu(engines, graph, manifest, platform)


def _library(engines: EngineSet, graph: str, manifest: EngineManifest, platform: Platform) -> Iterator[Problem]:
    here = platform.libraries.get(manifest.flavour)
    built = manifest.library_version
    if here == built or (manifest.version_compatible and _runs_later(built, here)):
        return
    mend = f"build it again with what is here: {engines.build_command}"
    if here is None:
        mend = f"install it: pip install 'sdrpn[{manifest.flavour}]'"
    engine = f"{manifest.flavour} {built}"
    yield Problem(graph, "VERSION_MISMATCH", "library_version", engine, f"here is {here or 'none'}", mend)


def _system(engines: EngineSet, graph: str, manifest: EngineManifest, platform: Platform) -> Iterator[Problem]:
    """TensorRT engines run only on the platform that built them; TensorRT-RTX engines do not depend on it."""
    if manifest.flavour != "tensorrt":
        return
    for field, here in (("system", platform.system), ("machine", platform.machine)):
        engine = getattr(manifest, field)
        if engine != here:
            mend = f"build it on this machine: {engines.build_command}"
            yield Problem(graph, "VERSION_MISMATCH", field, engine, f"here is {here}", mend)


def _gpu(engines: EngineSet, graph: str, manifest: EngineManifest, platform: Platform) -> Iterator[Problem]:
    gpu, wanted = platform.gpu, " ".join(manifest.compute_capabilities)
    if manifest.hardware_compatibility == _AMPERE_PLUS:
        wanted += " and later"
    if gpu is None:
        fault = (platform.cuda_fault or "CUDA shows none").partition(";")[0]
        other = "" if engines.bundle.release_targets else ", or answer on the CPU (backend onnxruntime)"
        mend = f"run it on a machine with one{other}"
        yield Problem(graph, "CUDA_ERROR", "compute_capabilities", wanted, f"here is no GPU: {fault}", mend)
        return
    if gpu.capability is not None and not _has_kernels(manifest, gpu.capability):
        mend = f"build for a target that has {gpu.capability} (see sdrpn targets): {engines.bundle.build_command()}"
        here = f"{gpu.name} is {gpu.capability}"
        yield Problem(graph, "UNSUPPORTED_CC", "compute_capabilities", wanted, here, mend)
    # TensorRT-RTX compiles for a capability, independent of the driver, and checks itself whether a driver is too old.
    built = manifest.driver if manifest.flavour == "tensorrt" else None
    if built is not None and gpu.driver is not None and _numbers(gpu.driver) < _numbers(built):
        mend = f"install driver {built} or newer, or build it again: {engines.build_command}"
        yield Problem(graph, "OLD_CUDA_DRIVER", "driver", built, f"here is {gpu.driver}", mend)
    driver, runtime = platform.cuda_driver, platform.cuda_runtime
    if driver is not None and runtime is not None and driver // 1000 < runtime // 1000:
        mend = "install a newer driver, or the cuda-python of the driver's CUDA"
        here = f"the driver has {_cuda_text(driver)}"
        yield Problem(graph, "OLD_CUDA_DRIVER", "CUDA", _cuda_text(runtime), here, mend)


def _memory(engines: EngineSet, platform: Platform, max_batch: int | None) -> Iterator[Problem]:
    """The memory of all engines, which are loaded together."""
    if platform.gpu is None or platform.gpu.memory_free_bytes is None:
        return
    needed, free = device_bytes(engines, max_batch), platform.gpu.memory_free_bytes
    batch = engines.max_batch if max_batch is None else max_batch
    fewer = f"decode fewer than {batch} sequences together (max_batch), " if batch > 1 else ""
    shorter = f"build for a shorter context: {engines.build_command} --max-context N"
    if needed > free:
        yield Problem(
            "all graphs",
            "INSUFFICIENT_GPU_MEMORY",
            "device memory",
            f"about {text_from_bytes(needed)}",
            f"{platform.gpu.name} has {text_from_bytes(free)} free: {text_from_bytes(needed - free)} are missing",
            f"end what else uses the GPU, {fewer}or {shorter}",
        )


def _by_library(engines: EngineSet) -> Iterator[Problem]:
    """Problems that the library finds in each engine's header, if it has such a check."""
    library = open_library(engines.flavour)
    for graph, engine in engines.engines.items():
        validity = library.validity(engine.path)
        if validity is not None and validity.state == "INVALID":
            yield from _invalid(engines, graph, validity)


def _invalid(engines: EngineSet, graph: str, validity: Validity) -> Iterable[Problem]:
    advice = {
        "OLD_CUDA_DRIVER": "install a newer driver",
        "OLD_CUDA_RUNTIME": "install a newer CUDA runtime: pip install --upgrade cuda-python",
        "INSUFFICIENT_GPU_MEMORY": "end what else uses the GPU, or build for a shorter context",
        "CUDA_ERROR": "see the driver and GPU in `sdrpn doctor`",
    }
    rebuild = f"build it again: {engines.build_command}"
    message = validity.message or "it gave no reason"
    for reason in validity.reasons or ("CUDA_ERROR",):
        here = f"{engines.flavour} says: {message}"
        yield Problem(graph, reason, "get_engine_validity", validity.state, here, advice.get(reason, rebuild))


def _runs_later(built: str, here: str | None) -> bool:
    """Whether a version-compatible engine runs: later releases of the same major version, and of 10 also 11.

    (TensorRT's support matrix, 11.4.1.)
    """
    if here is None:
        return False
    majors = _numbers(built)[0], _numbers(here)[0]
    return _numbers(here) >= _numbers(built) and (majors[0] == majors[1] or majors == (10, 11))


def _has_kernels(manifest: EngineManifest, capability: str) -> bool:
    if capability in manifest.compute_capabilities:
        return True
    # TensorRT's developer guide: for Ampere and later.
    return manifest.hardware_compatibility == _AMPERE_PLUS and int(capability.removeprefix("SM")) >= 80


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _cuda_text(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
