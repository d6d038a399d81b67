"""TensorRT engines from a bundle's graphs: planned, built, and tried once where this machine's GPU fits them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdrpn import engines
from sdrpn.bundle.copy import copy_bundle
from sdrpn.bundle.shipped import bundle_path
from sdrpn.engines import (
    BuildOptions,
    BuiltEngine,
    Plan,
    Target,
    plan_engines,
    read_target,
    read_targets,
    trtexec_script,
)
from sdrpn.errors import BadInput
from sdrpn.host.progress import Advance, unseen
from sdrpn.workflows.engine_trial import Trial, try_engines

__all__ = [
    "BuildOptions",
    "BuildRequest",
    "BuiltEngine",
    "EngineBuild",
    "Plan",
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
class BuildRequest:
    """What is to be built, for which device, and how carefully."""

    bundle: Path | str  # folder, or `default`, which needs `out`
    target: str  # name of a target, or a .toml file of the same form
    options: BuildOptions = field(default_factory=BuildOptions)  # what changes an engine
    out: Path | None = None  # copy the bundle there first and build in the copy
    jobs: int = 1  # builds at once, each in a process of its own
    timing_cache: Path | None = None  # where TensorRT keeps what it measures
    any_release: bool = False  # also a release of TensorRT outside of the target's range
    verify: bool = False  # hash files again, even if size and time are unchanged
    check_memory: bool = True  # refuse where the estimate says that a build or the engines cannot fit

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise BadInput(f"jobs is {self.jobs}; expected a whole number of at least 1")


@dataclass(frozen=True)
class EngineBuild:
    """What was planned, what was built or kept, and what came of trying the new ones."""

    plan: Plan
    engines: tuple[BuiltEngine, ...]
    trial: Trial

    def to_json(self) -> dict[str, Any]:
        """The plan, the engines with what is known of them, and the trial."""
        built = [_engine_to_json(engine) for engine in self.engines]
        return {**plan_to_json(self.plan), "engines": built, "trial": self.trial}


def plan_build(request: BuildRequest) -> Plan:
    """What a build would do and take, and why it could not be done here (`Plan.obstacle`). Writes nothing.

    Raises: BadInput, BadBundle for a request that no machine could meet
    """
    return _planned(request, only_look=True)


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
    """Build what is not there yet into BUNDLE/engines/TARGET and run each new engine once where the GPU fits it.

    Args:
        bundle: folder, or "default", which needs `out`
        target: name of a target, or a .toml file of the same form
        options: what changes an engine: graphs, precision, contexts, dialect, ...; None: as target and bundle say
        out: copy the bundle there first and build in the copy
        jobs: builds at once, each in a process of its own
        timing_cache: file that TensorRT keeps what it measures in, for the next build
        any_release: also a release of TensorRT outside of the target's range
        verify: hash files again, even if size and time are unchanged
        check_memory: refuse where the estimate says that a build or the engines cannot fit
        progress: told percent of all builds, of 100

    Raises:
        BadInput: a request that target, bundle or machine cannot meet; a target, option or release that there is not
        BadBundle: a bundle that is incomplete or changed
        MissingDependency: the target's library is not installed
        RunFailed: a build failed, or a new engine does not run or computes something else than ONNX Runtime; what
            failed is not kept
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


def _planned(request: BuildRequest, *, only_look: bool) -> Plan:
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


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Bundle, target, variant, library, contexts, estimate in bytes, and whether each engine is there already."""
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
