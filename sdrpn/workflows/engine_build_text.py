"""Targets, a planned build and built engines, as tables and lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.text import Part, Table, Text
from sdrpn.workflows.engine_build import BuiltEngine, EngineBuild, EnginePlan, Target

__all__ = ["build_text", "plan_text", "targets_text"]


def targets_text(targets: Iterable[Target]) -> Iterator[Part]:
    """One row per target, then their notes."""
    shown = list(targets)
    columns = ("target", "device", "capability", "library", "dialect", "precisions", "memory", "built")
    yield Table("", columns, [_target_row(target) for target in shown])
    yield from (f"{target.name}: {target.note}" for target in shown if target.note)


def _target_row(target: Target) -> tuple[str, ...]:
    memory = f"{target.memory_gb:g} GB{' shared' if target.unified_memory else ''}"
    return (
        target.name,
        target.device,
        " ".join(target.compute_capabilities),
        f"{target.flavour} {target.versions}",
        target.dialect,
        " ".join(target.precisions),
        memory,
        "anywhere" if target.built == "here" else "on the device",
    )


def plan_text(plan: EnginePlan, obstacle: str | None) -> Text:
    """What would be built, and what that needs.

    Args:
        obstacle: why it cannot be built here, in the words of the command line; None: it can
    """
    return [Table("", ("build", ""), list(_plan_rows(plan, obstacle)))]


def _plan_rows(plan: EnginePlan, obstacle: str | None) -> Iterator[tuple[str, str]]:
    needed, target = plan.estimate, plan.target
    yield "target", f"{target.name}: {target.device}, {' '.join(target.compute_capabilities)}"
    installed = f" {plan.library_version}" if plan.library_version else ", not installed here"
    yield "library", f"{target.flavour}{installed}"
    yield "variant", plan.variant.name
    for fallback in list(plan.fallbacks.values())[:1]:  # all graphs are of one variant
        yield "instead of", f"{fallback.variant}: {fallback.reason}"
    yield "context, batch", f"{' and '.join(map(str, plan.contexts))}, {plan.options.max_batch}"
    yield "memory of the build", f"about {text_from_bytes(needed.host_bytes)}"
    memory = f"{text_from_bytes(needed.device_bytes)} of {text_from_bytes(target.memory_bytes)}"
    yield "memory of the engines", f"about {memory}"
    for engine in plan.engines:
        yield engine.graph.name, "is there already" if engine.cached else "would be built"
    if obstacle is not None:
        yield "but not here", obstacle
    for shortage in plan.shortages():
        yield "but", shortage
    if target.note:
        yield "note", target.note


def build_text(done: EngineBuild) -> Iterator[Part]:
    """One row per engine, what its gate and its build say, and the trial on this machine."""
    columns = ("graph", "engine", "size", "built in", "peak memory", "kernels")
    yield Table("", columns, [_engine_row(engine) for engine in done.engines])
    for engine in done.engines:
        for line in (*engine.manifest.kernel_gate, *engine.manifest.build_notes):
            yield f"{engine.manifest.graph}: {line}"
    yield f"on this machine: {done.trial.state}"


def _engine_row(engine: BuiltEngine) -> tuple[str, ...]:
    manifest = engine.manifest
    return (
        manifest.graph,
        str(engine.path),
        text_from_bytes(manifest.engine.size_bytes),
        "kept" if engine.cached else f"{manifest.build_s:.1f} s",
        text_from_bytes(manifest.peak_rss_bytes),
        manifest.kernels_text,
    )
