"""`sdrpn verify`: how far the graphs that engines are made of lie from the checkpoint, against gates of each precision.

The JSON form is an object with these entries, which only ever gain new ones while `format_version` is 1:
    format_version  1
    bundle          the folder
    checkpoint      the folder
    target          the target, or null for all variants
    engines         how the engines themselves were judged: "ran", or why not
    ok              whether every gate was passed
    gates           by variant: list of sdrpn.bundle.engine_manifest.ParityGate
    checks          list of sdrpn.compare.graphs.Check, every tensor of every run
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, Variant
    from sdrpn.bundle.engine_manifest import ParityGate
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.cli.comparison import Steps
    from sdrpn.compare.answers import Question
    from sdrpn.compare.graphs import Check
    from sdrpn.model import SdRpnModel

HELP = "measure a bundle's graphs, or a target's engines, against the checkpoint"
DESCRIPTION = """\
Run the very graphs that engines are made of in ONNX Runtime, and the checkpoint in PyTorch in float32: the largest and
the mean difference and the cosine of every output of every layer, the largest value that fp16 has to hold, RoI maps,
crops and tokens of seeded questions. Each precision has its gates; what was found is written into the manifests of the
engines. Exits 1 below a gate. Where a GPU fits the engines of --target, they answer the same questions. Needs the
[train] extra.

  sdrpn verify bundle --target rtx-4090 --checkpoint llava-v1.5-7b-roi-K15T3
  sdrpn verify default
"""

FORMAT_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument(
        "--target", metavar="NAME", help="the graphs and engines of this target (default: all variants)"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="folder that the bundle was exported from (default: one of its name here or beside the bundle)",
    )
    parser.add_argument("--vision-tower", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--rpn", metavar="FILE", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--base", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--projector", metavar="FILE", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--json", action="store_true", help="print every gate and every check as JSON")
    add_model_options(parser, "bundle", "checkpoint", "base", "vision_tower")


def run(args: argparse.Namespace) -> int:
    """Measure, write what was found into the manifests, print it, and raise RunFailed below a gate."""
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.cli.comparison import require_memory, require_torch, verify_files
    from sdrpn.host.libraries import importing_extra

    with importing_extra("train", "sdrpn verify"):
        from sdrpn.checkpoint import open_checkpoint

    bundle = open_bundle(args.bundle)
    bundle.require_graphs("to compare them with the checkpoint")
    target = _target_name(args.target)
    variants = _variants(bundle, args.target)
    checkpoint, rpn = _source(args, bundle)
    verify_files(bundle, variants)
    with open_checkpoint(
        checkpoint,
        vision_tower=args.vision_tower,
        rpn=rpn,
        base=args.base,
        projector=args.projector,
        fit=bundle.spec.vision.fit,
        template=bundle.manifest.given_template,
    ) as source:
        require_torch("verify")
        require_memory("verify", bundle, source, variants)
        engines = _engines_state(bundle, target)
        checks = list(_verify(bundle, source, variants, target if engines == "ran" else None))
    from sdrpn.compare.parity import gates

    found = {variant.name: gates(check for check in checks if check.variant == variant.name) for variant in variants}
    _store(bundle, target, found)
    if args.json:
        _print_as_json(args, checkpoint, engines, found, checks)
    else:
        _print_as_table(engines, found, checks)
    _require_passed(args.bundle, found)
    return 0


# What is measured, and with what --------------------------------------------------------------------------------------


def _target_name(target: str | None) -> str | None:
    """Under which its engines lie: a file of the user's goes by its name."""
    return Path(target).stem if target is not None and target.endswith(".toml") else target


def _variants(bundle: Bundle, target: str | None) -> list[Variant]:
    """What the target's engines were made of, or would be; all variants where there is no target."""
    if target is None:
        return list(bundle.manifest.variants.values())
    from sdrpn.engines import read_target, target_variant
    from sdrpn.runtime.engines.engine_set import engine_sets

    for engines in engine_sets(bundle):
        if engines.target == _target_name(target) and engines.manifests:
            return [engines.variant]
    return [target_variant(bundle, read_target(target))]


def _source(args: argparse.Namespace, bundle: Bundle) -> tuple[Path, Path | None]:
    """The checkpoint, and an RPN on its own where there is one: given, or found."""
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.bundle.shipped import DEFAULT_BUNDLE, shipped_source

    # The shipped bundle, or a copy of it that engines were built in.
    if args.checkpoint is None and bundle.manifest.source == open_bundle(DEFAULT_BUNDLE).manifest.source:
        checkpoint, rpn = shipped_source()
        return checkpoint, args.rpn or rpn
    return args.checkpoint or _checkpoint_beside(bundle), args.rpn


def _checkpoint_beside(bundle: Bundle) -> Path:
    """A bundle knows its checkpoint's name, and the digest that `compare_source` holds against it."""
    from sdrpn.errors import BadInput

    name = str(bundle.manifest.source.get("checkpoint") or "")
    places = [Path(name), bundle.path.resolve().parent / name] if name and Path(name).name == name else []
    for place in places:
        if place.is_dir():
            return place
    raise BadInput(
        f"the checkpoint of {bundle.path}, {name or 'whose name is not known'}, is neither here nor beside the bundle; "
        "say where it is with --checkpoint"
    )


def _engines_state(bundle: Bundle, target: str | None) -> str:
    """Whether the engines of the target can be run here, or why not."""
    if target is None:
        return "no target"
    from sdrpn.runtime.engines.engine_set import engine_sets
    from sdrpn.runtime.engines.platform import read_platform
    from sdrpn.runtime.engines.preflight import check_engines

    engines = {one.target: one for one in engine_sets(bundle)}.get(target)
    if engines is None:
        return "none built"
    problems = check_engines(engines, read_platform())
    return f"not run here: {problems[0]}" if problems else "ran"


def _verify(bundle: Bundle, source: Checkpoint, variants: list[Variant], engines_of: str | None) -> Iterator[Check]:
    from sdrpn.cli.comparison import Steps, compare_source, questions_of
    from sdrpn.cli.progress import progress
    from sdrpn.errors import BadInput
    from sdrpn.model import model_from_checkpoint

    foreign = [check for check in compare_source(bundle, source) if not check.ok]
    if foreign:
        raise BadInput(
            f"{bundle.path} was not exported from {source.path}: {foreign[0].tensor} is {foreign[0].found}, expected "
            f"{foreign[0].expected}; name its checkpoint, with the same --vision-tower, --rpn, --base and --projector"
        )
    questions = questions_of(bundle, source)
    steps_each = len(bundle.variant().graphs) + len(questions) * (1 if engines_of is None else 2)
    with progress("verify", "steps") as advance:
        model = model_from_checkpoint(source)
        for index, variant in enumerate(variants):
            steps = Steps(advance, index * steps_each, len(variants) * steps_each)
            yield from _verify_variant(bundle, variant, model, questions, steps, engines_of)


def _verify_variant(
    bundle: Bundle,
    variant: Variant,
    model: SdRpnModel,
    questions: tuple[Question, ...],
    steps: Steps,
    engines_of: str | None,
) -> Iterator[Check]:
    from sdrpn.cli.comparison import GraphRuns, answers_of
    from sdrpn.compare.parity import answer_parity, graph_parity, peak_checks, recorded_peaks
    from sdrpn.compare.simulation import runnable_bundle
    from sdrpn.runtime import Session

    with recorded_peaks(model) as peaks, runnable_bundle(bundle, variant) as runs:
        with GraphRuns(runs, variant.name, steps) as graphs:
            checks = list(graph_parity(model, variant, graphs.run, max_context=bundle.manifest.max_context))
        if all(check.expected is None for check in checks):  # else a graph does not run, and cannot answer
            with Session.open(runs.path, variant=variant.name, backend="onnxruntime", verify=False) as session:
                answer = answers_of(session, steps)
                checks += answer_parity(model, questions, answer, variant=variant.name, precision=variant.numerics)
        yield from checks
    yield from peak_checks(variant, peaks)
    if engines_of is not None:
        with Session.open(bundle.path, target=engines_of, backend="tensorrt", verify=False) as session:
            answer = answers_of(session, steps)
            found = answer_parity(model, questions, answer, variant=variant.name, precision=variant.numerics)
            yield from _of_engines(found)


def _of_engines(checks: Iterator[Check]) -> Iterator[Check]:
    import dataclasses

    return (dataclasses.replace(check, graph="engines") for check in checks)


# What becomes of it ------------------------------------------------------------------------------------------------


def _store(bundle: Bundle, target: str | None, found: dict[str, tuple[ParityGate, ...]]) -> None:
    """Into the manifest of every engine that was made of the graphs that were measured, for whichever target.

    How engines answer is said of those of the target alone; what was found of others earlier stays.
    """
    import dataclasses

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


def _require_passed(bundle: Path, found: dict[str, tuple[ParityGate, ...]]) -> None:
    from sdrpn.errors import RunFailed

    failed = [(variant, gate) for variant, own in found.items() for gate in own if not gate.ok]
    if failed:
        variant, gate = failed[0]
        total = sum(map(len, found.values()))
        advice = "export it again, or in a higher --precision"
        if all(gate.graph == "engines" for _, gate in failed):
            advice = "the graphs are right: build the engines with another release of their library"
        raise RunFailed(
            f"{bundle}: {len(failed)} of {total} gates failed, first {variant} {gate.graph}, {gate.kind} of "
            f"{gate.tensor}: {gate.text}; {advice}"
        )


def _print_as_json(
    args: argparse.Namespace,
    checkpoint: Path,
    engines: str,
    found: dict[str, tuple[ParityGate, ...]],
    checks: list[Check],
) -> None:
    from sdrpn.bundle.shipped import bundle_name
    from sdrpn.cli.output import print_json

    print_json(
        {
            "format_version": FORMAT_VERSION,
            "bundle": bundle_name(args.bundle),
            "checkpoint": checkpoint,
            "target": args.target,
            "engines": engines,
            "ok": all(gate.ok for own in found.values() for gate in own),
            "gates": found,
            "checks": checks,
        }
    )


def _print_as_table(engines: str, found: dict[str, tuple[ParityGate, ...]], checks: list[Check]) -> None:
    from sdrpn.cli.output import print_table, print_text

    rows = [
        (variant, gate.graph, gate.kind, "passed" if gate.ok else "FAILED", gate.text, gate.tensor)
        for variant, own in found.items()
        for gate in own
    ]
    print_table(("variant", "graph", "measure", "gate", "worst", "where"), rows)
    for check in checks:
        if check.note:
            print_text(f"{check.variant} {check.graph}, {check.kind}, {check.tensor}: {check.note}")
    print_text(f"engines: {engines}")
    print_text(f"{sum(row[3] == 'passed' for row in rows)} of {len(rows)} gates passed")
