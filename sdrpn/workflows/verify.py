"""Measure how far a bundle, or a target's engines, are from the checkpoint: exactly, or against each precision's
gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.bundle.tolerances import more_is_better
from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.comparison import (
    GraphRuns,
    Steps,
    VerifyRequest,
    answers_of,
    compare_source,
    questions_of,
    require_memory,
    require_torch,
    source_of,
    verify_files,
)
from sdrpn.workflows.exact import exact_checks
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, Variant
    from sdrpn.bundle.engine_manifest import ParityGate
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.compare.answers import TrialQuestion
    from sdrpn.compare.graphs import Check
    from sdrpn.compare.vision_noise import TowerNoise
    from sdrpn.model import SdRpnModel

__all__ = ["Verification", "VerifyRequest", "difference_text", "place_text", "verify", "verify_bundle"]


FORMAT_VERSION = 1


@dataclass(frozen=True)
class Verification:
    """The result of a comparison.

    bundle, checkpoint: the two that were compared
    checks: every tensor of every run
    gates: by variant, the worst of these checks against the limits of its precision; empty if `exact`
    engines: whether the engines themselves were run: "ran", or why not
    target: the engines' target, as it was given
    """

    bundle: Path
    checkpoint: Path
    exact: bool
    checks: tuple[Check, ...]
    gates: Mapping[str, tuple[ParityGate, ...]] = field(default_factory=dict)
    engines: str = "no target"
    target: str | None = None

    @property
    def ok(self) -> bool:
        """Whether every difference is within its limit."""
        if self.exact:
            return all(check.ok for check in self.checks)
        return all(gate.ok for own in self.gates.values() for gate in own)

    def to_json(self) -> dict[str, Any]:
        """The result as `sdrpn verify --json` prints it."""
        from sdrpn.bundle.shipped import bundle_name

        gates = {"target": self.target, "engines": self.engines, "gates": self.gates}
        return {
            "format_version": FORMAT_VERSION,
            "bundle": bundle_name(self.bundle),
            "checkpoint": self.checkpoint,
            **({} if self.exact else gates),
            "ok": self.ok,
            "checks": self.checks,
        }

    def require_ok(self) -> None:
        """Raise RunFailed with the first failure, if there is one."""
        if self.exact:
            _require_equal(self)
        else:
            _require_passed(self)


def verify_bundle(
    bundle: Path | str,
    checkpoint: Path | str | None = None,
    *,
    target: str | None = None,
    variant: str | None = None,
    exact: bool = False,
    threads: int | None = None,
    vision_tower: Path | str | None = None,
    rpn: Path | str | None = None,
    base: Path | str | None = None,
    projector: Path | str | None = None,
    progress: ShowProgress = show_nothing,
) -> Verification:
    """Run a bundle's graphs on the CPU, and the checkpoint in PyTorch in float32, on the same seeded inputs.

    Results against gates are written into the manifests of the engines that were built from these graphs.

    Args:
        bundle: folder, or "demo"
        checkpoint: the one that it was exported from; None: a folder of its name here or beside the bundle
        target, variant, exact, threads: see `VerifyRequest`
        vision_tower, rpn, base, projector: as given to the export
        progress: (title, unit; None for bytes) -> a context manager that gives a function of (done, total)
    Returns: all checks and gates; `require_ok` raises RunFailed if one failed
    Raises: BadInput if the bundle was not exported from the checkpoint; BadBundle, BadCheckpoint; RunFailed if there
        is not enough memory; MissingDependency without sdrpn[train]
    """
    from sdrpn.bundle.shipped import bundle_path

    folder = bundle_path(bundle) if isinstance(bundle, str) else bundle
    return verify(
        VerifyRequest(folder, checkpoint, vision_tower, rpn, base, projector, target, variant, exact, threads), progress
    )


def verify(request: VerifyRequest, progress: ShowProgress = show_nothing) -> Verification:
    """See `verify_bundle`."""
    from sdrpn.bundle.bundle import open_bundle

    with importing_extra("train", "sdrpn verify"):
        import sdrpn.checkpoint  # noqa: F401

    bundle = open_bundle(request.bundle)
    bundle.require_graphs("to compare them with the checkpoint")
    target, variants = _target_name(request.target), _variants(bundle, request)
    parts = source_of(bundle, request)
    verify_files(bundle, variants, progress)
    with parts.open() as source:
        require_torch()
        require_memory(bundle, source, variants)
        with torch_threads(request.threads, source.spec):
            if request.exact:
                checks = tuple(exact_checks(bundle, source, variants, request.threads, progress))
                return Verification(request.bundle, Path(parts.path), True, checks)
            engines = _engines_state(bundle, target)
            engines_of = target if engines == "ran" else None
            checks = tuple(_measured(bundle, source, variants, engines_of, request.threads, progress))
    from sdrpn.compare.parity import gates

    found = {variant.name: gates(check for check in checks if check.variant == variant.name) for variant in variants}
    _store(bundle, target, found)
    return Verification(request.bundle, Path(parts.path), False, checks, found, engines, request.target)


def difference_text(check: Check) -> str:
    """What an exact check found, and what was expected."""
    style, bound = (".7f", "at least") if more_is_better(check.kind) else (".1e", "at most")
    found = f"{check.found:{style}}" if isinstance(check.found, float) else check.found
    if check.limit is not None:
        return f"{found}, {bound} {check.limit:g}"
    return f"{found}, {check.expected}" if isinstance(check.found, float) else f"{found}, expected {check.expected}"


def place_text(check: Check) -> str:
    """The variant, graph, kind and tensor of a check."""
    return f"{check.variant} {check.graph}, {check.kind} of {check.tensor}"


# What is measured, and with what -------------------------------------------------------------------------------------


def _target_name(target: str | None) -> str | None:
    """The name of the target's engine folder; a .toml file counts by its name."""
    return Path(target).stem if target is not None and target.endswith(".toml") else target


def _variants(bundle: Bundle, request: VerifyRequest) -> list[Variant]:
    """The named variant; the one that the target's engines were, or would be, built from; or all."""
    if request.variant is not None:
        return [bundle.variant(request.variant)]
    if request.target is None:
        return list(bundle.manifest.variants.values())
    from sdrpn.engines import read_target, target_variant
    from sdrpn.runtime.engines.engine_set import engine_sets

    for engines in engine_sets(bundle):
        if engines.target == _target_name(request.target) and engines.manifests:
            return [engines.variant]
    return [target_variant(bundle, read_target(request.target))]


def _engines_state(bundle: Bundle, target: str | None) -> str:
    """ "ran" if the target's engines can be run here, or why not."""
    if target is None:
        return "no target"
    from sdrpn.runtime.engines.engine_set import engine_sets
    from sdrpn.runtime.engines.platform import read_platform
    from sdrpn.runtime.engines.preflight import check_engines

    engines = {engines.target: engines for engines in engine_sets(bundle)}.get(target)
    if engines is None:
        return "none built"
    problems = check_engines(engines, read_platform())
    return f"not run here: {problems[0]}" if problems else "ran"


def _measured(
    bundle: Bundle,
    source: Checkpoint,
    variants: Sequence[Variant],
    engines_of: str | None,
    threads: int | None,
    progress: ShowProgress,
) -> Iterator[Check]:
    from sdrpn.compare.vision_noise import TowerNoise
    from sdrpn.model import model_from_checkpoint

    foreign = [check for check in compare_source(bundle, source) if not check.ok]
    if foreign:
        raise BadInput(
            f"{bundle.path} was not exported from {source.path}: {foreign[0].tensor} is {foreign[0].found}, expected "
            f"{foreign[0].expected}; name its checkpoint, with the same parts",
            options=("checkpoint", "vision_tower", "rpn", "base", "projector"),
        )
    questions = questions_of(bundle, source)
    steps_each = len(bundle.variant().graphs) + len(questions) * (1 if engines_of is None else 2)
    with progress("verify", "steps") as advance:
        model = model_from_checkpoint(source)
        tower = TowerNoise(model)
        for index, variant in enumerate(variants):
            steps = Steps(advance, index * steps_each, len(variants) * steps_each)
            yield from _measured_variant(bundle, variant, model, tower, questions, steps, engines_of, threads)


def _measured_variant(
    bundle: Bundle,
    variant: Variant,
    model: SdRpnModel,
    tower: TowerNoise,
    questions: tuple[TrialQuestion, ...],
    steps: Steps,
    engines_of: str | None,
    threads: int | None,
) -> Iterator[Check]:
    from sdrpn.compare.parity import answer_parity, graph_parity, peak_checks, recorded_peaks
    from sdrpn.compare.simulation import runnable_bundle
    from sdrpn.runtime import Session

    with recorded_peaks(model) as peaks, runnable_bundle(bundle, variant) as runs:
        with GraphRuns(runs, variant.name, steps, threads) as graphs:
            context = bundle.manifest.max_context
            checks = list(graph_parity(model, variant, graphs.run, max_context=context, tower=tower))
        if all(check.expected is None for check in checks):  # else a graph does not run, and there are no answers
            with Session.open(
                runs.path, variant=variant.name, backend="onnxruntime", threads=threads, verify=False
            ) as session:
                answer = answers_of(session, steps)
                checks += answer_parity(model, questions, answer, variant=variant.name, precision=variant.numerics)
        yield from checks
    yield from peak_checks(variant, peaks)
    if engines_of is not None:
        with Session.open(bundle.path, target=engines_of, backend="tensorrt", verify=False) as session:
            answer = answers_of(session, steps)
            found = answer_parity(model, questions, answer, variant=variant.name, precision=variant.numerics)
            yield from (dataclasses.replace(check, graph="engines") for check in found)


# What becomes of it --------------------------------------------------------------------------------------------------


def _store(bundle: Bundle, target: str | None, found: Mapping[str, tuple[ParityGate, ...]]) -> None:
    """Write the gates into the manifest of every engine that was built from the measured graphs, of any target.

    Gates of the engines' own answers are written for `target` only; earlier results of other targets stay.
    """
    from sdrpn.bundle.engine_manifest import engine_paths, write_engine_manifest
    from sdrpn.runtime.engines.engine_set import engine_sets

    for engines in engine_sets(bundle):
        for graph, manifest in engines.manifests.items():
            same = all(
                name in bundle.manifest.files and bundle.manifest.files[name].sha256 == stamp.sha256
                for name, stamp in manifest.sources.items()
            )
            if same and manifest.variant in found:
                own = [gate for gate in found[manifest.variant] if gate.graph in (graph, "answer")]
                ran = found[manifest.variant] if engines.target == target else manifest.parity
                own += [gate for gate in ran if gate.graph == "engines"]
                path = engine_paths(bundle.path, engines.target, graph)[1]
                write_engine_manifest(path, dataclasses.replace(manifest, parity=tuple(own)))


def _require_equal(found: Verification) -> None:
    failed = [check for check in found.checks if not check.ok]
    if failed:
        foreign = failed[0].kind == "checkpoint"
        advice = "name the checkpoint that it was exported from, with the same parts" if foreign else "export it again"
        raise RunFailed(
            f"{found.bundle} differs from {found.checkpoint}: {len(failed)} of {len(found.checks)} checks failed, "
            f"first {place_text(failed[0])}: {difference_text(failed[0])}; {advice}",
            options=("checkpoint", "vision_tower", "rpn", "base", "projector") if foreign else (),
        )


def _require_passed(found: Verification) -> None:
    failed = [(variant, gate) for variant, own in found.gates.items() for gate in own if not gate.ok]
    if failed:
        variant, gate = failed[0]
        total = sum(map(len, found.gates.values()))
        advice = "export it again, or in a higher precision"
        if all(gate.graph == "engines" for _, gate in failed):
            advice = "the graphs are right: build the engines with another release of their library"
        raise RunFailed(
            f"{found.bundle}: {len(failed)} of {total} gates failed, first {variant} {gate.graph}, {gate.kind} of "
            f"{gate.tensor}: {gate.text}; {advice}",
        )
