"""From a bundle's graphs to engines for one target, each built in a process of its own. Imports no TensorRT.

Engines land in BUNDLE/engines/TARGET/. The manifest of an engine is removed before the engine is replaced and written
after everything else, so whatever ends a build leaves either the old engine or none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.atomic import replacing_file, require_free_space, require_writable_file
from sdrpn.bundle import Bundle, GraphInfo, Variant, file_digest, open_bundle
from sdrpn.engine_manifest import EngineManifest, EngineTensor, Stamp, engine_paths, read_engine_manifest
from sdrpn.engines.children import Job, run_jobs
from sdrpn.engines.flavour import library_version
from sdrpn.engines.layers import Kernel, KernelTensor, gate
from sdrpn.engines.memory import Estimate, estimate, require_device_memory, require_host_memory
from sdrpn.engines.options import BuildOptions, checked_context, chosen_graphs
from sdrpn.engines.profiles import Profile, profiles_of, shapes_of
from sdrpn.engines.target import Target
from sdrpn.errors import BadBundle, BadInput, RunFailed
from sdrpn.machine import read_gpus, read_machine
from sdrpn.memory import graph_weights_bytes
from sdrpn.shipped import export_advice, require_not_shipped

__all__ = ["BuiltEngine", "Plan", "build_engines", "plan_engines", "target_variant"]

# Raised whenever the same inputs would give another engine or another manifest.
_REVISION = 1

Advance = Callable[[int, int], None]  # (done, total) in percent of a graph


@dataclass(frozen=True)
class PlannedEngine:
    """One graph and all that decides what its engine will be."""

    graph: GraphInfo
    profiles: tuple[Profile, ...]
    key: str
    cached: EngineManifest | None  # the engine that is there already and is the same


@dataclass(frozen=True)
class Plan:
    """What a build is going to do."""

    bundle: Bundle
    target: Target
    variant: Variant
    options: BuildOptions
    max_context: int
    library_version: str
    driver: str | None
    estimate: Estimate
    engines: tuple[PlannedEngine, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """What came of one graph."""

    manifest: EngineManifest
    path: Path
    cached: bool


def plan_engines(
    bundle_path: Path, target: Target, options: BuildOptions, *, jobs: int = 1, verify: bool = False
) -> Plan:
    """Check the request against bundle, target and library, and find what is built already. Writes nothing.

    Args:
        verify: hash the bundle's files and the engines again instead of trusting unchanged sizes and times

    Raises: BadInput, BadBundle, MissingDependency
    """
    bundle = open_bundle(bundle_path)
    variant = target_variant(bundle, target)
    context = checked_context(bundle.spec, bundle.manifest.max_context, options.max_context)
    names = chosen_graphs(bundle.spec, options.graphs)
    version = library_version(target.flavour)
    if not target.accepts(version):
        raise BadInput(
            f"target {target.name} takes {target.flavour} {target.versions}, this machine has {version}; "
            "install one that fits"
        )
    driver = _gpu_driver(target) if target.flavour == "tensorrt" else None
    needed = estimate(
        bundle.spec,
        graph_weights_bytes(bundle, variant),
        built=names,
        jobs=jobs,
        max_context=context,
        max_batch=options.max_batch,
        weight_streaming=options.weight_streaming,
    )
    plan = Plan(bundle, target, variant, options, context, version, driver, needed, ())
    engines = tuple(_planned(plan, variant.graphs[name], verify=verify) for name in names)
    return dataclasses.replace(plan, engines=engines)


def build_engines(
    plan: Plan, *, jobs: int = 1, check_memory: bool = True, progress: Advance = lambda done, total: None
) -> tuple[BuiltEngine, ...]:
    """Build what is not there yet.

    Raises:
        BadInput, BadBundle: the bundle cannot be written or is the shipped one, or a file of it was changed
        RunFailed: too little memory or disk, a second build of the same bundle, or a build that failed
    """
    todo = [one for one in plan.engines if one.cached is None]
    built = {one.graph.name: one.cached for one in plan.engines if one.cached is not None}
    if todo:
        require_not_shipped(plan.bundle.path, "build in a copy of it: --out BUNDLE")
        _require_resources(plan, todo, check_memory)
        with _locked(plan):
            plan.bundle.verify({file for one in todo for file in (one.graph.file, *one.graph.weights)})
            built |= {manifest.graph: manifest for manifest in _built(plan, todo, jobs, progress)}
    fresh = {one.graph.name for one in todo}
    return tuple(
        BuiltEngine(built[name], engine_paths(plan.bundle.path, plan.target.name, name)[0], name not in fresh)
        for name in (one.graph.name for one in plan.engines)
    )


def target_variant(bundle: Bundle, target: Target) -> Variant:
    """The variant in the target's dialect and the best of its precisions that the bundle has."""
    for precision in target.precisions:
        name = f"{target.dialect}-{precision}"
        if name in bundle.manifest.variants:
            return bundle.manifest.variants[name]
    wanted = " or ".join(f"{target.dialect}-{precision}" for precision in target.precisions)
    there = ", ".join(sorted(bundle.manifest.variants))
    raise BadInput(
        f"target {target.name} takes variant {wanted}; {bundle.path} has {there}. "
        f"Add it: {export_advice(bundle.path, f'--dialect {target.dialect} --precision fp16')}"
    )


def _gpu_driver(target: Target) -> str | None:
    """TensorRT builds for the GPU that is there: it must be the target's. Integrated GPUs may not tell."""
    gpus = read_gpus()
    capability = target.compute_capabilities[0]
    told = [gpu for gpu in gpus if gpu.compute_capability is not None]
    if told and all(f"SM{(gpu.compute_capability or '').replace('.', '')}" != capability for gpu in told):
        found = ", ".join(f"{gpu.name} (SM{(gpu.compute_capability or '').replace('.', '')})" for gpu in told)
        raise BadInput(f"target {target.name} is for {capability}; this machine has {found}: build on {target.device}")
    return gpus[0].driver if gpus else None


def _weights_bytes(bundle: Bundle, graph: GraphInfo) -> int:
    return sum(bundle.manifest.files[name].size_bytes for name in graph.weights)


def _planned(plan: Plan, graph: GraphInfo, *, verify: bool) -> PlannedEngine:
    profiles = profiles_of(plan.bundle.spec, graph.name, plan.variant.dialect, plan.max_context, plan.options.max_batch)
    key = _cache_key(plan, graph, profiles)
    return PlannedEngine(graph, profiles, key, _cached(plan, graph, key, verify=verify))


def _cache_key(plan: Plan, graph: GraphInfo, profiles: tuple[Profile, ...]) -> str:
    """SHA-256 of everything that changes the engine."""
    files = plan.bundle.manifest.files
    value = {
        "revision": _REVISION,
        "graph": graph.name,
        "files": {name: files[name].sha256 for name in (graph.file, *graph.weights)},
        "flavour": plan.target.flavour,
        "library": plan.library_version,
        "driver": plan.driver,
        "capabilities": plan.target.compute_capabilities,
        "machine": (platform.system(), platform.machine()),
        "max_context": plan.max_context,
        "profiles": [(profile.name, profile.extents) for profile in profiles],
        "opt_level": plan.options.opt_level,
        "workspace_mb": plan.options.workspace_mb,
        "weight_streaming": plan.options.weight_streaming,
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _cached(plan: Plan, graph: GraphInfo, key: str, *, verify: bool) -> EngineManifest | None:
    """The manifest of the engine that is there, if it is the one that would be built."""
    engine, manifest_path, _ = engine_paths(plan.bundle.path, plan.target.name, graph.name)
    try:
        manifest = read_engine_manifest(manifest_path)
    except BadBundle:  # none, or of another release: it is replaced
        return None
    if manifest.cache_key != key or (plan.options.kernel_gate and manifest.kernel_gate):
        return None
    stamped = [(engine, manifest.engine)]
    for name in (graph.file, *graph.weights):
        stamp = manifest.sources.get(name)
        if stamp is None or stamp.sha256 != plan.bundle.manifest.files[name].sha256:
            return None
        stamped.append((plan.bundle.file(name), stamp))
    return manifest if all(_unchanged(path, stamp, verify) for path, stamp in stamped) else None


def _unchanged(path: Path, stamp: Stamp, verify: bool) -> bool:
    try:
        status = path.stat()
        if status.st_size != stamp.size_bytes:
            return False
        if status.st_mtime_ns == stamp.modified_ns and not verify:
            return True
        return file_digest(path) == stamp.sha256
    except OSError:
        return False


def _require_resources(plan: Plan, todo: list[PlannedEngine], check_memory: bool) -> None:
    weights = sum(_weights_bytes(plan.bundle, one.graph) for one in todo)
    # An engine holds its weights, once for all capabilities, and kernels beside them.
    require_free_space(plan.bundle.path, weights, advice="build fewer --graphs")
    for one in todo:
        require_writable_file(engine_paths(plan.bundle.path, plan.target.name, one.graph.name)[0])
    if check_memory:
        require_host_memory(plan.estimate, read_machine().memory_available_bytes)
        require_device_memory(plan.estimate, plan.target)


@contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """One build a bundle. The system drops the lock with the process, however that ends."""
    import fcntl

    folder = plan.bundle.path / "engines"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("a+", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise RunFailed(
                f"another build (process {holder}) works on {plan.bundle.path}; wait until it is done, or end it"
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _built(plan: Plan, todo: list[PlannedEngine], at_once: int, progress: Advance) -> Iterator[EngineManifest]:
    folder = plan.bundle.path / "engines" / plan.target.name
    folder.mkdir(exist_ok=True)
    for left in folder.glob(".*.partial"):  # of a build that was killed; the lock says that none is at work
        left.unlink(missing_ok=True)
    partials = {one.graph.name: folder / f".{one.graph.name}.engine.{secrets.token_hex(4)}.partial" for one in todo}
    planned = {one.graph.name: one for one in todo}
    percents = dict.fromkeys(planned, 0)

    def advance(name: str, percent: int) -> None:
        percents[name] = percent
        progress(sum(percents.values()), 100 * len(percents))

    jobs = [Job(one.graph.name, _request(plan, one, partials[one.graph.name])) for one in todo]
    results = run_jobs(jobs, at_once=at_once, advance=advance)
    try:
        for job, result in results:
            yield _install(plan, planned[job.name], partials[job.name], result)
            advance(job.name, 100)
    finally:
        results.close()  # type: ignore[attr-defined]  # ends what still runs
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _request(plan: Plan, one: PlannedEngine, out: Path) -> dict[str, Any]:
    workspace = plan.options.workspace_mb
    return {
        "flavour": plan.target.flavour,
        "graph_file": str(plan.bundle.file(one.graph.file).absolute()),
        "max_context": plan.max_context,
        "compute_capabilities": plan.target.compute_capabilities,
        "profiles": {profile.name: shapes_of(profile, one.graph.inputs) for profile in one.profiles},
        "opt_level": plan.options.opt_level,
        "workspace_bytes": None if workspace is None else workspace << 20,
        "weight_streaming": plan.options.weight_streaming,
        "out": str(out.absolute()),
    }


def _install(plan: Plan, one: PlannedEngine, partial: Path, result: Mapping[str, Any]) -> EngineManifest:
    """Judge the kernels and put engine, layers and manifest in their places, in this order."""
    engine, manifest_path, layers_path = engine_paths(plan.bundle.path, plan.target.name, one.graph.name)
    names = tuple(profile.name for profile in one.profiles)
    kernels = tuple(_kernel(value) for value in result["kernels"])
    found = gate(kernels, plan.bundle.spec, one.graph.name, profiles=names, max_context=plan.max_context)
    if found and plan.options.kernel_gate:
        raise RunFailed(
            f"the engine of {one.graph.name} would be slow: {'; '.join(found)}; try another release of "
            f"{plan.target.flavour}, or keep such engines with --no-kernel-gate"
        )
    digest = file_digest(partial)
    manifest_path.unlink(missing_ok=True)
    partial.replace(engine)
    manifest = _manifest(plan, one, result, kernel_gate=found, engine=_stamp(engine, digest))
    for path, text in ((layers_path, _layers_text(kernels)), (manifest_path, manifest.to_text())):
        with replacing_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return manifest


def _manifest(
    plan: Plan, one: PlannedEngine, result: Mapping[str, Any], *, kernel_gate: tuple[str, ...], engine: Stamp
) -> EngineManifest:
    files = plan.bundle.manifest.files
    sources = {
        name: _stamp(plan.bundle.file(name), files[name].sha256) for name in (one.graph.file, *one.graph.weights)
    }
    return EngineManifest(
        graph=one.graph.name,
        target=plan.target.name,
        variant=plan.variant.name,
        precision=plan.variant.precision,
        flavour=plan.target.flavour,
        library_version=plan.library_version,
        compute_capabilities=plan.target.compute_capabilities,
        system=platform.system(),
        machine=platform.machine(),
        driver=plan.driver,
        max_context=plan.max_context,
        max_batch=plan.options.max_batch,
        opt_level=plan.options.opt_level,
        workspace_mb=plan.options.workspace_mb,
        weight_streaming=plan.options.weight_streaming,
        profiles=tuple(profile.name for profile in one.profiles),
        tensors=tuple(EngineTensor.from_json(tensor) for tensor in result["tensors"]),
        kernels=len(result["kernels"]),
        kernel_gate=kernel_gate,
        activation_bytes=result["activation_bytes"],
        build_s=round(result["build_s"], 3),
        peak_rss_bytes=result["peak_rss_bytes"],
        compiled_sha256=result["compiled_sha256"],
        sources=sources,
        engine=engine,
        cache_key=one.key,
        parity=(),
    )


def _stamp(path: Path, sha256: str) -> Stamp:
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, sha256)


def _kernel(value: Mapping[str, Any]) -> Kernel:
    sides = {
        side: tuple(KernelTensor(t["name"], tuple(t["dims"]), t["dtype"]) for t in value[side])
        for side in ("inputs", "outputs")
    }
    return Kernel(**{**value, **sides, "onnx_nodes": tuple(value["onnx_nodes"])})


def _layers_text(kernels: tuple[Kernel, ...]) -> str:
    return json.dumps([dataclasses.asdict(kernel) for kernel in kernels], indent=1) + "\n"
