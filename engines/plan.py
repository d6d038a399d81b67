"""The plan of a build: checks the request, and finds existing engines by their keys. Writes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sdrpn.bundle.bundle import Bundle, GraphInfo, Variant, file_digest, open_bundle
from sdrpn.bundle.engine_manifest import EngineManifest, Fallback, Stamp, engine_paths, read_engine_manifest
from sdrpn.bundle.memory import graph_weights_bytes
from sdrpn.bundle.numerics import cache_form
from sdrpn.bundle.shipped import export_advice
from sdrpn.engines.flavour import library_version
from sdrpn.engines.gpu import BuildGpu, build_gpu, other_gpu
from sdrpn.engines.memory import Estimate, device_shortage, estimate, host_shortage
from sdrpn.engines.options import (
    BuildOptions,
    checked_contexts,
    chosen_graphs,
    least_context,
    require_aligned,
    require_possible,
)
from sdrpn.engines.profiles import Profile, profiles_of
from sdrpn.engines.target import Target
from sdrpn.errors import BadBundle, BadInput, MissingDependency
from sdrpn.host.cuda_devices import read_cuda_devices
from sdrpn.host.machine import read_cuda_driver, read_gpus, read_jetson, read_machine

__all__ = ["EnginePlan", "PlannedEngine", "plan_engines", "replanned", "target_variant"]

# Increased whenever the same inputs would give another engine or another manifest.
_REVISION = 5


@dataclass(frozen=True)
class PlannedEngine:
    """One graph, and everything that determines its engine."""

    graph: GraphInfo
    profiles: tuple[Profile, ...]
    key: str
    cached: EngineManifest | None  # the identical engine that exists already


@dataclass(frozen=True)
class EnginePlan:
    """The plan of a build."""

    bundle: Bundle
    target: Target
    variant: Variant
    options: BuildOptions
    timing_cache: Path | None
    contexts: tuple[int, ...]  # cache lengths, shortest first
    library_version: str | None  # None: not installed on this machine
    gpu: str | None  # of this machine
    driver: str | None
    cuda: int | None  # the newest version that the driver supports: 13040 is 13.4
    estimate: Estimate
    engines: tuple[PlannedEngine, ...]
    obstacle: str | None = None  # why these engines cannot be built on this machine
    fallbacks: Mapping[str, Fallback] = field(default_factory=dict)  # graph -> the variant that could not be built

    @property
    def max_context(self) -> int:
        """The largest number of cache rows."""
        return self.contexts[-1]

    def shortages(self) -> tuple[str, ...]:
        """Shortages of memory, on the machine that builds and on the device.

        The build runs on this machine, or on the device, if the memory of its CPU is known.
        """
        target = self.target
        if self.obstacle is None:
            build = host_shortage(self.estimate, read_machine().memory_available_bytes)
        else:
            there = target.memory_bytes if target.unified_memory else None
            build = host_shortage(self.estimate, there, target.device)
        return tuple(filter(None, (build, device_shortage(self.estimate, target, least_context(self.bundle.spec)))))


def plan_engines(
    bundle_path: Path,
    target: Target,
    options: BuildOptions,
    *,
    jobs: int = 1,
    verify: bool = False,
    timing_cache: Path | None = None,
    any_release: bool = False,
    only_look: bool = False,
) -> EnginePlan:
    """Check the request against bundle, target, library and machine, and find existing engines.

    Args:
        verify: hash the bundle's files and the engines again instead of trusting unchanged sizes and times
        timing_cache: file that TensorRT reads and extends
        any_release: also accept a release outside the target's range
        only_look: record a missing library or another GPU as the plan's obstacle instead of raising

    Raises: BadInput, BadBundle, MissingDependency
    """
    bundle = open_bundle(bundle_path)
    bundle.require_graphs("to build engines")
    gpus, jetson = read_gpus(), read_jetson()
    require_possible(
        options,
        target,
        timing_cache=timing_cache is not None,
        gpu=bool(gpus) or jetson is not None,
        jetson=jetson is not None,
    )
    variant = target_variant(bundle, target, options.precision, options.kv_cache, _dialect(target, options))
    contexts = checked_contexts(bundle.spec, bundle.manifest.max_context, options)
    graphs = variant.graphs.values()
    require_aligned((each for graph in graphs for each in graph.inputs if each.is_cache), contexts, options.max_batch)
    names = chosen_graphs(bundle.spec, options.graphs, options.parts)
    # TensorRT-RTX compiles without a GPU: nvidia-smi's names are enough for the manifest.
    devices = read_cuda_devices() if target.flavour == "tensorrt" else None
    chosen, there = build_gpu(devices, gpus, options.device)
    gpu = chosen.name if chosen is not None else None if jetson is None else jetson.model
    obstacle = _obstacle(target, chosen, there, any_release)
    if obstacle is not None and not only_look:
        raise obstacle
    needed = estimate(
        bundle.spec,
        graph_weights_bytes(bundle, variant),
        built=names,
        jobs=jobs,
        max_context=contexts[-1],
        max_batch=options.max_batch,
        weight_streaming=options.weight_streaming,
        unified_memory=target.unified_memory,
        kv_cache=variant.kv_cache,
        unfused_attention=target.may_write_scores(variant.dialect),
    )
    plan = EnginePlan(
        bundle=bundle,
        target=target,
        variant=variant,
        options=options,
        timing_cache=timing_cache,
        contexts=contexts,
        library_version=_version(target),
        gpu=gpu,
        driver=gpus[0].driver if gpus else None,
        cuda=read_cuda_driver(),
        estimate=needed,
        engines=(),
        obstacle=None if obstacle is None else str(obstacle),
    )
    plan = _with_engines(plan, names, verify)
    return _as_it_fell_back(plan, verify) or plan


def replanned(
    plan: EnginePlan, variant: Variant, names: Sequence[str], reason: str, *, verify: bool = False
) -> EnginePlan:
    """The plan for the same graphs in another variant, after the planned one could not be built."""
    keys = {name: _planned(plan, plan.variant.graphs[name], verify=False).key for name in names}
    fallbacks = {name: Fallback(plan.variant.name, reason, key) for name, key in keys.items()}
    needed = dataclasses.replace(
        plan.estimate,
        weights_bytes=graph_weights_bytes(plan.bundle, variant),
        unfused_attention=plan.target.may_write_scores(variant.dialect),
    )
    other = dataclasses.replace(plan, variant=variant, estimate=needed, fallbacks=fallbacks)
    return _with_engines(other, names, verify)


def _with_engines(plan: EnginePlan, names: Sequence[str], verify: bool) -> EnginePlan:
    engines = tuple(_planned(plan, plan.variant.graphs[name], verify=verify) for name in names)
    todo = tuple(engine.graph.name for engine in engines if engine.cached is None)
    return dataclasses.replace(plan, engines=engines, estimate=dataclasses.replace(plan.estimate, built=todo))


def _as_it_fell_back(plan: EnginePlan, verify: bool) -> EnginePlan | None:
    """The plan that an earlier, identical build fell back to, so that the failed attempt is not repeated."""
    for engine in plan.engines:
        path = engine_paths(plan.bundle.path, plan.target.name, engine.graph.name)[1]
        with suppress(BadBundle):
            manifest = read_engine_manifest(path)
            fallback, variants = manifest.fallback, plan.bundle.manifest.variants
            if fallback is not None and fallback.cache_key == engine.key and manifest.variant in variants:
                names = [each.graph.name for each in plan.engines]
                return replanned(plan, variants[manifest.variant], names, fallback.reason, verify=verify)
    return None


def _dialect(target: Target, options: BuildOptions) -> str:
    """The dialect to build: TensorRT updates caches in place only in 16 and 32 bits, and only with one cache length."""
    primitive = options.kv_cache is not None or bool(options.shorter_contexts)
    return options.dialect or ("primitive" if primitive else target.dialect)


def target_variant(
    bundle: Bundle,
    target: Target,
    precision: str | None = None,
    kv_cache: str | None = None,
    dialect: str | None = None,
) -> Variant:
    """The variant in the target's dialect and one of its precisions.

    Args:
        precision: None: the best that the bundle has
        kv_cache: int8 or fp8; such variants always have the dialect primitive, because TensorRT updates caches in place
            only in 16 and 32 bits
        dialect: None: the target's, except for such variants
    Raises: BadInput
    """
    first = 0 if (caches := cache_form(kv_cache)) is None else caches.least_capability
    if old := [capability for capability in target.compute_capabilities if int(capability[2:]) < first]:
        raise BadInput(f"target {target.name} has no {kv_cache}: {old[0]}, and SM{first} is the first; use int8")
    dialect = dialect or (target.dialect if kv_cache is None else "primitive")
    ending = "" if kv_cache is None else f"-kv-{kv_cache}"
    if precision is not None and precision not in target.precisions:
        raise BadInput(
            f"target {target.name} has no precision {precision}; expected one of {', '.join(target.precisions)}"
        )
    precisions = target.precisions if precision is None else (precision,)
    for candidate in precisions:
        name = f"{dialect}-{candidate}{ending}"
        if name in bundle.manifest.variants:
            return bundle.manifest.variants[name]
    why = "" if kv_cache or dialect == target.dialect else " (several contexts, or the given dialect, need this)"
    wanted = " or ".join(f"{dialect}-{candidate}{ending}" for candidate in precisions)
    there = ", ".join(sorted(bundle.manifest.variants))
    cache = "" if kv_cache is None else f" --kv-cache {kv_cache}"
    exported = {variant.precision for variant in bundle.manifest.variants.values()}
    suited = precision or next((candidate for candidate in precisions if candidate in exported), "fp16")
    advice = export_advice(bundle.path, f"--dialect {dialect} --precision {suited}{cache}")
    raise BadInput(f"target {target.name} needs variant {wanted}{why}; {bundle.path} has {there}. Add it: {advice}")


def _version(target: Target) -> str | None:
    with suppress(MissingDependency):
        return library_version(target.flavour)
    return None


def _obstacle(target: Target, chosen: BuildGpu | None, there: Sequence[BuildGpu], any_release: bool) -> BadInput | None:
    """Why this machine cannot build for the target; None where it can."""
    try:
        version = library_version(target.flavour)
    except MissingDependency as error:
        return error
    if not target.accepts(version) and not any_release:
        return BadInput(
            f"target {target.name} needs {target.flavour} {target.versions}, this machine has {version}; install a "
            "supported release, or build anyway",
            options=("any_release",),
        )
    return other_gpu(target, chosen, there) if target.flavour == "tensorrt" else None


def _planned(plan: EnginePlan, graph: GraphInfo, *, verify: bool) -> PlannedEngine:
    shorter, options = plan.contexts[:-1], plan.options
    spec, most, usual = plan.bundle.spec, options.max_batch, options.usual_batch
    profiles = profiles_of(spec, graph.name, plan.max_context, most, shorter, usual)
    key = _cache_key(plan, graph, profiles)
    return PlannedEngine(graph, profiles, key, _cached(plan, graph, key, verify=verify))


def _cache_key(plan: EnginePlan, graph: GraphInfo, profiles: tuple[Profile, ...]) -> str:
    """SHA-256 of everything that changes the engine.

    The content of a timing cache is not included: the build would repeat the same measurements.
    """
    files, options = plan.bundle.manifest.files, plan.options
    value = {
        "revision": _REVISION,
        "graph": graph.name,
        "files": {name: files[name].sha256 for name in (graph.file, *graph.weights)},
        "flavour": plan.target.flavour,
        "library": plan.library_version,
        # TensorRT times kernels on the GPU of this machine; TensorRT-RTX compiles for a capability on any machine.
        "timed_on": (plan.gpu, plan.driver, plan.cuda) if plan.target.flavour == "tensorrt" else None,
        "capabilities": plan.target.compute_capabilities,
        "machine": (platform.system(), platform.machine()),
        "contexts": plan.contexts,
        "profiles": [(profile.name, profile.extents) for profile in profiles],
        "opt_level": options.opt_level,
        "workspace_mb": options.workspace_mb,
        "weight_streaming": options.weight_streaming,
        "hardware_compat": options.hardware_compat,
        "version_compatible": options.version_compatible,
        "refit": options.refit,
        "verbosity": options.verbosity,
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _cached(plan: EnginePlan, graph: GraphInfo, key: str, *, verify: bool) -> EngineManifest | None:
    """The manifest of the existing engine, if it is the one that would be built."""
    engine, manifest_path, _ = engine_paths(plan.bundle.path, plan.target.name, graph.name)
    try:
        manifest = read_engine_manifest(manifest_path)
    except BadBundle:  # missing, or from another release: it is replaced
        return None
    if manifest.cache_key != key or (plan.options.kernel_gate and manifest.kernel_verdict == "failed"):
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
        if not stat.S_ISREG(status.st_mode) or status.st_size != stamp.size_bytes:
            return False
        if status.st_mtime_ns == stamp.modified_ns and not verify:
            return True
        return file_digest(path) == stamp.sha256
    except OSError:
        return False
