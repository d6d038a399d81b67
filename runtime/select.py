"""Which backend answers with a bundle, and with which of its variants. Loads nothing; asks the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdrpn.bundle.bundle import Bundle, Variant
from sdrpn.bundle.graphs import Parts, graphs_of
from sdrpn.bundle.memory import usual_context
from sdrpn.bundle.optimized import OptimizedSet, find_optimized, libraries_with_graphs
from sdrpn.errors import BadInput, EngineMismatch
from sdrpn.host.machine import read_available_memory, read_cpu
from sdrpn.runtime.backends.info import BackendInfo, MemoryRequest
from sdrpn.runtime.backends.onnxruntime_info import CPU, onnxruntime_version
from sdrpn.runtime.backends.openvino_info import OPENVINO, is_faster, openvino_version
from sdrpn.runtime.backends.registry import AUTOMATIC, BACKENDS, backend_info, graph_backends
from sdrpn.runtime.engines.engine_set import EngineSet, engine_set, engine_sets
from sdrpn.runtime.engines.platform import read_platform
from sdrpn.runtime.engines.preflight import check_engines, require_fit

__all__ = ["Choice", "choose_backend", "choose_optimized", "graph_backend", "graph_variant", "mapped_weights_bytes"]


@dataclass(frozen=True)
class Choice:
    """A backend, and the engines that it runs."""

    info: BackendInfo
    engines: EngineSet | None = None
    note: str | None = None  # why existing engines are not used

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self.info.name


def choose_backend(
    bundle: Bundle,
    backend: str = AUTOMATIC,
    *,
    target: str | None = None,
    variant: str | None = None,
    device: int = 0,
    verify: bool = True,
    max_batch: int | None = None,
    parts: Parts = "all",
) -> Choice:
    """Choose a backend, and engines for it.

    Args:
        backend: a name of the registry, or "auto": engines if some fit this machine, else the fastest backend that runs
            graphs on a CPU
        target: the target whose engines run; None: the first that fit
        variant: only engines of this variant; None: any
        device: the GPU that they must fit, as CUDA numbers them
        verify: hash engines; False: large ones only if size or time differ from the build
        max_batch: sequences that engines must have memory for; None: as many as a decode step takes
        parts: what is to be loaded: engines of other graphs are not looked at

    Raises:
        BadInput: an unknown backend; a target without the backend for it, or without engines
        EngineMismatch: engines were requested, and none fit
    """
    asked = None if backend == AUTOMATIC else backend_info(backend)
    if asked is not None and asked.runs == "graphs":
        if target is not None:
            raise BadInput(
                f"target {target} selects engines, which {backend} does not run; use the backend {_engines().name}",
                options=("target", "backend"),
            )
        return Choice(asked)
    if asked is not None or target is not None:
        return Choice(_engines(), _fitting(bundle, target, variant, device, verify, max_batch, parts))
    return _automatic(bundle, variant, device, verify, max_batch, parts)


def graph_variant(
    bundle: Bundle, name: str | None = None, *, info: BackendInfo = CPU, note: str | None = None
) -> Variant:
    """The variant for a backend that runs graphs: the named one, or the one that suits it best.

    Args:
        note: why existing engines are not used
    Raises:
        BadInput: the backend cannot run the variant; the bundle is a release, which has no graphs
        MissingDependency: the installed library is too old for it
    """
    bundle.require_graphs(f"to answer with {info.library}", note)
    variants = sorted(bundle.manifest.variants.values(), key=info.preference)
    if name is None:
        chosen = next((variant for variant in variants if info.refuses(bundle, variant) is None), variants[0])
    else:
        chosen = bundle.variant(name)
    fault = info.refuses(bundle, chosen)
    if fault is not None:
        raise fault if note is None else type(fault)(f"{fault} ({note})", options=fault.options)
    return chosen


def choose_optimized(
    bundle: Bundle, variant: Variant, info: BackendInfo = CPU, verify: bool = True
) -> tuple[OptimizedSet | None, str | None]:
    """The graphs that `sdrpn optimize` saved for this machine's CPU, if they fit; else why existing ones do not fit.

    Raises: BadBundle if their files were changed
    """
    if info not in (CPU, OPENVINO) or info.name not in libraries_with_graphs(bundle):
        return None, None
    version = onnxruntime_version() if info is CPU else openvino_version()
    found, note = find_optimized(bundle, variant, version, read_cpu(), info.name)
    if found is not None:
        found.verify(large=verify)
    return found, note


def mapped_weights_bytes(bundle: Bundle, variant: Variant, parts: Parts = "all", info: BackendInfo = CPU) -> int | None:
    """Bytes of the weights of the graphs that `choose_optimized` would choose on a CPU; None if there are none.

    Args: parts: "look": the share of the graphs that it loads, by their sizes on disk
    """
    found, _ = choose_optimized(bundle, variant, info, verify=False)
    if found is None:
        return None
    wanted = {graph.name for graph in graphs_of(bundle.spec, parts)}
    sizes = {name: found.weights_bytes(name) for name in found.manifest.graphs}
    share = sum(size for name, size in sizes.items() if name in wanted) / max(1, sum(sizes.values()))
    return int(found.manifest.mapped_bytes * share)


def _engines() -> BackendInfo:
    """The backend that runs engines."""
    return next(info for info in BACKENDS.values() if info.runs == "engines")


def _fitting(
    bundle: Bundle,
    target: str | None,
    variant: str | None,
    device: int,
    verify: bool,
    max_batch: int | None,
    parts: Parts,
) -> EngineSet:
    if target is not None:
        found = engine_set(bundle, target).of(parts)
        require_fit(found, read_platform(device), verify=verify, max_batch=max_batch)
        if variant is not None and found.variant.name != variant:
            raise EngineMismatch(
                f"the engines of {target} are of variant {found.variant.name}, not {variant}; leave the variant out"
            )
        return found
    sets = _sets(bundle, parts)
    if not sets:
        raise BadInput(f"{bundle.path} has no engines; build them: {bundle.build_command()}")
    platform = read_platform(device)
    for engines in _of_variant(sets, variant):
        if not check_engines(engines, platform, verify=verify, max_batch=max_batch):
            return engines
    if not _of_variant(sets, variant):
        raise EngineMismatch(f"{bundle.path} has no engines of variant {variant}; leave the variant out")
    require_fit(_of_variant(sets, variant)[0], platform, verify=verify, max_batch=max_batch)
    raise AssertionError("unreachable: engines that do not fit were refused")


def _automatic(
    bundle: Bundle, variant: str | None, device: int, verify: bool, max_batch: int | None, parts: Parts
) -> Choice:
    graphs = graph_backend(bundle, variant)
    sets = _of_variant(_sets(bundle, parts), variant)
    if not sets:
        return Choice(graphs)
    platform = read_platform(device)
    if platform.gpu is None:  # a machine to export or test on: nothing to say about
        return Choice(graphs)
    for engines in sets:
        if not (problems := check_engines(engines, platform, verify=verify, max_batch=max_batch)):
            return Choice(_engines(), engines)
    return Choice(graphs, note=f"the engines of {engines.target} are not used: {problems[0]}")


def graph_backend(bundle: Bundle, variant: str | None) -> BackendInfo:
    """The backend that runs graphs without being asked for: the fastest one on a CPU that has the memory for it.

    Graphs that were saved for this machine are used with the library that saved them.
    """
    saved = libraries_with_graphs(bundle)
    if saved and OPENVINO.name not in saved:
        return graph_backends()[0]
    return OPENVINO if is_faster(bundle, variant) and _fits(bundle, variant) else graph_backends()[0]


def _fits(bundle: Bundle, variant: str | None) -> bool:
    """Whether a question with a crop fits into this machine's memory with OpenVINO, which takes more."""
    available = read_available_memory()
    chosen = graph_variant(bundle, variant, info=OPENVINO)
    mapped = mapped_weights_bytes(bundle, chosen, info=OPENVINO)
    request = MemoryRequest(usual_context(bundle.spec, bundle.manifest.max_context), mapped_bytes=mapped)
    return available is None or OPENVINO.needs(bundle, chosen, request).total_bytes <= available


def _sets(bundle: Bundle, parts: Parts) -> tuple[EngineSet, ...]:
    return tuple(found for found in (engines.of(parts) for engines in engine_sets(bundle)) if found.engines)


def _of_variant(sets: Sequence[EngineSet], variant: str | None) -> tuple[EngineSet, ...]:
    return tuple(
        engines
        for engines in sets
        if variant is None or all(manifest.variant == variant for manifest in engines.manifests.values())
    )
