"""Build the engines of a plan, each graph in its own process, and check them. Imports no TensorRT.

Engines are written to BUNDLE/engines/TARGET/. The manifest of an engine is removed before the engine is replaced, and
written last, so an interrupted build leaves either the old engine or none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.bundle.bundle import Bundle, GraphInfo, file_digest
from sdrpn.bundle.engine_manifest import EngineManifest, EngineTensor, Stamp, TimingCacheUse, engine_paths
from sdrpn.bundle.shipped import require_not_shipped
from sdrpn.engines.children import Job, run_jobs
from sdrpn.engines.fallback import may_decompose, primitive_instead
from sdrpn.engines.gpu import seen_alone
from sdrpn.engines.layers import Kernel, KernelTensor, Verdict, gate
from sdrpn.engines.plan import EnginePlan, PlannedEngine
from sdrpn.engines.profiles import shapes_of
from sdrpn.errors import BadInput, EngineNotBuilt, RunFailed
from sdrpn.host.atomic import replacing_file, require_free_space, require_writable_file
from sdrpn.host.file_lock import lock_file
from sdrpn.host.progress import Advance, unseen
from sdrpn.host.sizes import text_from_bytes

__all__ = ["BuiltEngine", "build_engines", "require_writable"]

# How much larger than its weights an engine may be without a remark: 2 MB to 44 MB were seen.
_KERNELS_BYTES = 32_000_000
_MOST_PER_WEIGHT_BYTE = 1.2


@dataclass(frozen=True)
class BuiltEngine:
    """The result for one graph."""

    manifest: EngineManifest
    path: Path
    cached: bool


def build_engines(
    plan: EnginePlan, *, jobs: int = 1, check_memory: bool = True, progress: Advance = unseen
) -> tuple[BuiltEngine, ...]:
    """Build the missing engines of a plan.

    Where TensorRT cannot build a fused graph, attention is decomposed, and after that the dialect `primitive` is used
    for all graphs; the manifests record this.

    Raises:
        BadInput, BadBundle: the bundle cannot be written or is the shipped one, or one of its files was changed
        RunFailed: too little memory or disk, a second build of the same bundle, or a build that failed
    """
    if plan.obstacle is not None:
        raise BadInput(plan.obstacle)
    try:
        return _build(plan, jobs, check_memory, progress)
    except EngineNotBuilt as error:
        return _build(primitive_instead(plan, error), jobs, check_memory, progress)


def require_writable(plan: EnginePlan) -> None:
    """Raise BadInput where the bundle is the shipped one, into which nothing is written."""
    require_not_shipped(plan.bundle.path, "build in a copy of it", ("out BUNDLE",))


def _build(plan: EnginePlan, jobs: int, check_memory: bool, progress: Advance) -> tuple[BuiltEngine, ...]:
    todo = [planned for planned in plan.engines if planned.cached is None]
    built = {planned.graph.name: planned.cached for planned in plan.engines if planned.cached is not None}
    if todo:
        require_writable(plan)
        _require_resources(plan, todo, check_memory)
        with _locked(plan):
            plan.bundle.verify({file for planned in todo for file in (planned.graph.file, *planned.graph.weights)})
            built |= {manifest.graph: manifest for manifest in _built(plan, todo, jobs, progress)}
    fresh = {planned.graph.name for planned in todo}
    return tuple(
        BuiltEngine(built[name], engine_paths(plan.bundle.path, plan.target.name, name)[0], name not in fresh)
        for name in (planned.graph.name for planned in plan.engines)
    )


def _weights_bytes(bundle: Bundle, graph: GraphInfo) -> int:
    return sum(bundle.manifest.files[name].size_bytes for name in graph.weights)


def _require_resources(plan: EnginePlan, todo: list[PlannedEngine], check_memory: bool) -> None:
    weights = sum(_weights_bytes(plan.bundle, planned.graph) for planned in todo)
    # An engine has its weights, once for all capabilities, and kernels.
    require_free_space(plan.bundle.path, weights, advice="build fewer graphs")
    for planned in todo:
        require_writable_file(engine_paths(plan.bundle.path, plan.target.name, planned.graph.name)[0])
    if plan.timing_cache is not None:
        require_writable_file(plan.timing_cache)
    if check_memory and (shortages := plan.shortages()):
        raise RunFailed(shortages[0], options=("no_memory_check",))


@contextmanager
def _locked(plan: EnginePlan) -> Iterator[None]:
    """Allow one build per bundle at a time. The system releases the lock when the process ends in any way."""
    folder = plan.bundle.path / "engines"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a+", encoding="ascii") as stream:
        locked = lock_file(stream.fileno(), wait=False)
        if locked == "elsewhere":
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise RunFailed(
                f"another build (process {holder}) is using {plan.bundle.path}; wait until it ends, or stop it"
            )
        if locked == "none":
            raise RunFailed(
                f"{folder} is on a file system without locks; build in a copy of the bundle on a local disk",
                options=("out",),
            )
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _built(plan: EnginePlan, todo: list[PlannedEngine], at_once: int, progress: Advance) -> Iterator[EngineManifest]:
    """Yield each engine as it is finished; a graph that cannot be built is tried again with attention decomposed."""
    waiting = {planned.graph.name: planned for planned in todo}
    decomposed, advance = frozenset[str](), _progress_of(waiting, progress)
    with _partial_files(plan, waiting) as partials:
        while waiting:
            jobs = [_job(plan, planned, partials[name], name in decomposed) for name, planned in waiting.items()]
            with closing(run_jobs(jobs, at_once=at_once, advance=advance)) as results:  # stops running builds
                try:
                    for job, result in results:
                        yield _install(plan, waiting.pop(job.name), partials[job.name], result, job.name in decomposed)
                        advance(job.name, 100)
                except EngineNotBuilt as error:
                    if not may_decompose(plan, error.graph, decomposed):
                        raise
                    decomposed |= {error.graph}


def _progress_of(graphs: Collection[str], progress: Advance) -> Callable[[str, int], None]:
    percents = dict.fromkeys(graphs, 0)

    def advance(name: str, percent: int) -> None:
        percents[name] = percent
        progress(sum(percents.values()) // len(percents), 100)

    return advance


@contextmanager
def _partial_files(plan: EnginePlan, graphs: Collection[str]) -> Iterator[dict[str, Path]]:
    """Temporary files for engines until they are checked; removed afterwards."""
    folder = plan.bundle.path / "engines" / plan.target.name
    folder.mkdir(exist_ok=True)
    for left in folder.glob(".*.partial"):  # left by a killed build; the lock ensures that none is running
        left.unlink(missing_ok=True)
    partials = {name: folder / f".{name}.engine.{secrets.token_hex(4)}.partial" for name in graphs}
    try:
        yield partials
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _job(plan: EnginePlan, planned: PlannedEngine, out: Path, decompose_attention: bool) -> Job:
    request = _request(plan, planned, out, decompose_attention)
    return Job(planned.graph.name, request, environment=seen_alone(plan.options.device))


def _request(plan: EnginePlan, planned: PlannedEngine, out: Path, decompose_attention: bool) -> dict[str, Any]:
    options, workspace = plan.options, plan.options.workspace_mb
    return {
        "flavour": plan.target.flavour,
        "graph_file": str(plan.bundle.file(planned.graph.file).absolute()),
        "contexts": plan.contexts,
        "compute_capabilities": plan.target.compute_capabilities,
        "profiles": {profile.name: shapes_of(profile, planned.graph.inputs) for profile in planned.profiles},
        "opt_level": options.opt_level,
        "workspace_bytes": None if workspace is None else workspace << 20,
        "weight_streaming": options.weight_streaming,
        "hardware_compat": options.hardware_compat,
        "version_compatible": options.version_compatible,
        "refit": options.refit,
        "verbosity": options.verbosity,
        "decompose_attention": decompose_attention,
        "timing_cache": None if plan.timing_cache is None else str(plan.timing_cache.absolute()),
        "out": str(out.absolute()),
    }


def _install(
    plan: EnginePlan, planned: PlannedEngine, partial: Path, result: Mapping[str, Any], decomposed_attention: bool
) -> EngineManifest:
    """Check the kernels and move engine, layers and manifest into place, in this order."""
    engine, manifest_path, layers_path = engine_paths(plan.bundle.path, plan.target.name, planned.graph.name)
    kernels = tuple(_kernel(value) for value in result["kernels"])
    verdict = gate(
        kernels,
        plan.bundle.spec,
        planned.graph.name,
        profiles=tuple(profile.name for profile in planned.profiles),
        max_context=plan.max_context,
        cache_lengths={profile.name: profile.cache_length or 0 for profile in planned.profiles},
        small_weights=result["small_weights"],
        coded_caches=plan.variant.kv_cache is not None,
        updated_caches={tensor.name for tensor in planned.graph.outputs if tensor.role in ("cache", "cache_scale")},
        caches={tensor.name for tensor in planned.graph.inputs if tensor.is_cache},
    )
    verdict = dataclasses.replace(verdict, remarks=(*verdict.remarks, *_size_remark(plan, planned.graph, partial)))
    if plan.target.flavour == "tensorrt":  # the gate was written without a listing of this library's kernels
        verdict = verdict.without_faults
    if plan.options.kernel_gate:
        _require_good(plan, planned.graph.name, verdict)
    digest = file_digest(partial)
    manifest_path.unlink(missing_ok=True)
    partial.replace(engine)
    manifest = _manifest(plan, planned, result, verdict, _stamp(engine, digest), decomposed_attention)
    for path, text in ((layers_path, _layers_text(kernels)), (manifest_path, manifest.to_text())):
        with replacing_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return manifest


def _size_remark(plan: EnginePlan, graph: GraphInfo, engine: Path) -> Iterator[str]:
    """A remark where the engine stores weights twice, e.g. in another layout for the other profile."""
    size, weights = engine.stat().st_size, _weights_bytes(plan.bundle, graph)
    if size > _MOST_PER_WEIGHT_BYTE * weights + _KERNELS_BYTES:
        yield f"the engine has {text_from_bytes(size)} for {text_from_bytes(weights)} of weights: some are stored twice"


def _require_good(plan: EnginePlan, graph: str, verdict: Verdict) -> None:
    flavour = plan.target.flavour
    if verdict.faults:
        raise RunFailed(
            f"the engine of {graph} would be slow: {'; '.join(verdict.faults)}; try another release of {flavour}, or "
            "keep such engines",
            options=("no_kernel_gate",),
        )
    # TensorRT's listing may lack what the gate needs: then the manifest says so.
    if verdict.unjudged is not None and flavour == "tensorrt-rtx":
        raise RunFailed(
            f"the kernels of {graph} cannot be checked: {verdict.unjudged}; try another release of {flavour}, or keep "
            "such engines",
            options=("no_kernel_gate",),
        )


def _manifest(
    plan: EnginePlan,
    planned: PlannedEngine,
    result: Mapping[str, Any],
    verdict: Verdict,
    engine: Stamp,
    decomposed_attention: bool,
) -> EngineManifest:
    assert plan.library_version is not None  # otherwise the plan has an obstacle
    files, options, timing = plan.bundle.manifest.files, plan.options, result["timing_cache"]
    sources = {
        name: _stamp(plan.bundle.file(name), files[name].sha256)
        for name in (planned.graph.file, *planned.graph.weights)
    }
    return EngineManifest(
        graph=planned.graph.name,
        target=plan.target.name,
        variant=plan.variant.name,
        precision=plan.variant.precision,
        flavour=plan.target.flavour,
        library_version=plan.library_version,
        compute_capabilities=plan.target.compute_capabilities,
        system=platform.system(),
        machine=platform.machine(),
        gpu=plan.gpu,
        driver=plan.driver,
        cuda=plan.cuda,
        max_context=plan.max_context,
        contexts=plan.contexts,
        max_batch=options.max_batch,
        opt_level=options.opt_level,
        workspace_mb=options.workspace_mb,
        weight_streaming=options.weight_streaming,
        hardware_compatibility=result["hardware_compatibility"],
        version_compatible=options.version_compatible,
        refit=options.refit,
        profiling_verbosity=options.verbosity,
        timing_cache=None if timing is None else TimingCacheUse(**timing),
        profiles=tuple(profile.name for profile in planned.profiles),
        tensors=tuple(EngineTensor.from_json(tensor) for tensor in result["tensors"]),
        decomposed_attention=decomposed_attention,
        fallback=plan.fallbacks.get(planned.graph.name),
        kernels=len(result["kernels"]),
        kernel_gate=verdict.lines,
        activation_bytes=result["activation_bytes"],
        build_s=round(result["build_s"], 3),
        peak_rss_bytes=result["peak_rss_bytes"],
        compiled_sha256=result["compiled_sha256"],
        sources=sources,
        engine=engine,
        cache_key=planned.key,
        parity=(),
    )


def _stamp(path: Path, sha256: str) -> Stamp:
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, sha256)


def _kernel(value: Mapping[str, Any]) -> Kernel:
    sides = {
        side: tuple(KernelTensor(t["name"], tuple(t["dims"]), t["dtype"]) for t in value[side])
        for side in ("inputs", "constants", "outputs")
    }
    return Kernel(**{**value, **sides, "onnx_nodes": tuple(value["onnx_nodes"])})


def _layers_text(kernels: tuple[Kernel, ...]) -> str:
    return json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=1) + "\n"
