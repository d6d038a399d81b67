"""Build TensorRT engines from a bundle's graphs, and run each once if this machine's GPU fits it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrpn import engines
from sdrpn.bundle.copy import copy_bundle, require_copyable
from sdrpn.bundle.shipped import bundle_path
from sdrpn.engines import (
    BuildOptions,
    BuiltEngine,
    EnginePlan,
    Target,
    plan_engines,
    read_target,
    read_targets,
    trtexec_script,
)
from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.progress import Advance, unseen
from sdrpn.workflows.engine_trial import Trial, try_engines

__all__ = [
    "BuildOptions",
    "BuildRequest",
    "BuiltEngine",
    "EngineBuild",
    "EnginePlan",
    "Target",
    "Trial",
    "build",
    "build_engines",
    "plan_build",
    "plan_to_json",
    "read_targets",
    "trtexec_script",
]


@dataclass(frozen=True)
class BuildRequest(CheckedFields):
    """What to build, for which device, and which checks to make."""

    bundle: Path | str  # folder, or `demo`, which needs `out`
    target: str  # name of a target, or a .toml file of the same form
    options: BuildOptions = field(default_factory=BuildOptions)  # build options
    out: Path | None = None  # copy the bundle there first and build in the copy
    jobs: int = 1  # builds that run at once, each in its own process
    timing_cache: Path | None = None  # where TensorRT keeps its measurements
    any_release: bool = False  # also allow a release of TensorRT outside the target's range
    verify: bool = False  # hash files again, even if size and time are unchanged
    check_memory: bool = True  # refuse if the estimated memory of a build or of the engines does not fit

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs < 1:
            raise BadInput(f"jobs is {self.jobs}; expected a whole number of at least 1", options=("jobs",))


@dataclass(frozen=True)
class EngineBuild:
    """The plan, the engines that were built or kept, and the trial of the new ones."""

    plan: EnginePlan
    engines: tuple[BuiltEngine, ...]
    trial: Trial

    def to_json(self) -> dict[str, Any]:
        """The plan, the engines with their manifests, and the trial."""
        built = [_engine_to_json(engine) for engine in self.engines]
        return {**plan_to_json(self.plan), "engines": built, "trial": self.trial}


def plan_build(request: BuildRequest) -> EnginePlan:
    """Plan a build: what it does and needs, and why it cannot run here (`EnginePlan.obstacle`). Writes nothing.

    Raises: BadInput, BadBundle for a request that no machine could meet
    """
    plan = _planned(request, only_look=True)
    if request.out is not None:
        require_copyable(plan.bundle, request.out)
    error = needs_copy(request, plan)
    return plan if error is None or plan.obstacle is not None else dataclasses.replace(plan, obstacle=str(error))


def needs_copy(request: BuildRequest, plan: EnginePlan) -> BadInput | None:
    """What a build of the shipped bundle raises where nothing says where its copy is to lie."""
    if request.out is not None or all(engine.cached is not None for engine in plan.engines):
        return None
    try:
        engines.require_writable(plan)
    except BadInput as error:
        return error
    return None


def build_engines(
    bundle: Path | str,
    target: str,
    options: BuildOptions | None = None,
    *,
    out: Path | str | None = None,
    jobs: int = 1,
    timing_cache: Path | str | None = None,
    any_release: bool = False,
    verify: bool = False,
    check_memory: bool = True,
    progress: Advance = unseen,
) -> EngineBuild:
    """Build missing engines into BUNDLE/engines/TARGET, and run each new one once if the GPU fits it.

    Args:
        bundle: folder, or "demo", which needs `out`
        target: name of a target, or a .toml file of the same form
        options: build options: graphs, precision, contexts, dialect, ...; None: the defaults of target and bundle
        out: copy the bundle there first and build in the copy
        jobs: builds that run at once, each in its own process
        timing_cache: file in which TensorRT keeps its measurements for later builds
        any_release: also allow a release of TensorRT outside the target's range
        verify: hash files again, even if size and time are unchanged
        check_memory: refuse if the estimated memory of a build or of the engines does not fit
        progress: called with (percent of all builds, 100)

    Raises:
        BadInput: an unknown target, option or release, or a request that target, bundle or machine cannot meet
        BadBundle: a bundle that is incomplete or changed
        MissingDependency: the target's library is not installed
        RunFailed: a build failed, or a new engine does not run or computes something other than ONNX Runtime; failed
            engines are not kept
    """
    request = BuildRequest(
        bundle,
        target,
        options or BuildOptions(),
        out=None if out is None else Path(out),
        jobs=jobs,
        timing_cache=None if timing_cache is None else Path(timing_cache),
        any_release=any_release,
        verify=verify,
        check_memory=check_memory,
    )
    return build(request, progress)


def build(request: BuildRequest, progress: Advance = unseen) -> EngineBuild:
    """See `build_engines`."""
    plan = _planned(request, only_look=False)
    if request.out is not None:
        plan = _planned(dataclasses.replace(request, bundle=copy_bundle(plan.bundle, request.out)), only_look=False)
    built = engines.build_engines(plan, jobs=request.jobs, check_memory=request.check_memory, progress=progress)
    fresh = [engine.manifest.graph for engine in built if not engine.cached]
    trial = try_engines(plan.bundle, plan.target.name, fresh, device=request.options.device)
    return EngineBuild(plan, built, trial)


def _planned(request: BuildRequest, *, only_look: bool) -> EnginePlan:
    return plan_engines(
        bundle_path(request.bundle),
        target=read_target(request.target),
        options=request.options,
        jobs=request.jobs,
        verify=request.verify,
        timing_cache=request.timing_cache,
        any_release=request.any_release,
        only_look=only_look,
    )


def plan_to_json(plan: EnginePlan) -> dict[str, Any]:
    """Bundle, target, variant, library, contexts, estimate in bytes, and whether each engine is already built."""
    needed = plan.estimate
    return {
        "bundle": plan.bundle.path,
        "target": plan.target.name,
        "variant": plan.variant.name,
        "library": f"{plan.target.flavour} {plan.library_version or 'none'}",
        "obstacle": plan.obstacle,
        "max_context": plan.max_context,
        "contexts": plan.contexts,
        "estimate": {
            "host_bytes": needed.host_bytes,
            "weights_bytes": needed.device.weights_bytes,
            "caches_bytes": needed.device.caches_bytes,
            "activations_bytes": needed.device.activations_bytes,
            "images_bytes": needed.device.images_bytes,
            "attention_bytes": needed.device.attention_bytes,
        },
        "shortages": plan.shortages(),
        "engines": [{"graph": engine.graph.name, "cached": engine.cached is not None} for engine in plan.engines],
    }


def _engine_to_json(engine: BuiltEngine) -> dict[str, Any]:
    manifest = engine.manifest
    return {
        "graph": manifest.graph,
        "engine": engine.path,
        "cached": engine.cached,
        "size_bytes": manifest.engine.size_bytes,
        "build_s": manifest.build_s,
        "peak_rss_bytes": manifest.peak_rss_bytes,
        "kernels": manifest.kernels,
        "kernel_gate": manifest.kernel_gate,
        "kernel_verdict": manifest.kernel_verdict,
        "variant": manifest.variant,
        "decomposed_attention": manifest.decomposed_attention,
        "fallback": manifest.fallback,
    }
