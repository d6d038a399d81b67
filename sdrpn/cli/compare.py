"""`sdrpn compare`: does a bundle still say what its checkpoint says?

The JSON form is an object with these entries, which only ever gain new ones while `format_version` is 1:
    format_version  1
    bundle          the folder
    checkpoint      the folder
    ok              whether every check passed
    checks          list of sdrpn.compare.graphs.Check: variant, graph, kind, tensor, found, expected, limit, ok, note
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
    from sdrpn.bundle.signatures import GraphSignature
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.cli.comparison import Steps
    from sdrpn.compare.answers import Question
    from sdrpn.compare.graphs import Check
    from sdrpn.model import SdRpnModel

HELP = "compare a bundle with the checkpoint that it came from"
DESCRIPTION = """\
Run every graph of a bundle against the same part of the checkpoint in PyTorch: names, axes, shapes and values, in that
order; then the whole: RoI map, boxes and generated tokens. Exits 1 when something differs by more than it may.
Runs on the CPU, with the model in float32 beside the bundle's graphs. Needs the [train] extra.

  sdrpn compare bundle --checkpoint llava-v1.5-7b-roi-K15T3 --variant fused-fp16
"""

FORMAT_VERSION = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument(
        "--checkpoint", metavar="CHECKPOINT", type=Path, required=True, help="folder that the bundle was exported from"
    )
    parser.add_argument("--vision-tower", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--rpn", metavar="FILE", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--base", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--projector", metavar="FILE", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--variant", metavar="NAME", help="compare this variant only (default: all)")
    parser.add_argument("--json", action="store_true", help="print every check as JSON")
    add_model_options(parser, "bundle", "checkpoint", "base", "vision_tower")


def run(args: argparse.Namespace) -> int:
    """Compare, print every check, and raise RunFailed where one failed."""
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.cli.comparison import require_memory, require_torch, verify_files
    from sdrpn.host.libraries import importing_extra

    with importing_extra("train", "sdrpn compare"):
        from sdrpn.checkpoint import open_checkpoint
    from sdrpn.errors import RunFailed

    bundle = open_bundle(args.bundle)
    bundle.require_graphs("to compare them with the checkpoint")
    variants = list(bundle.manifest.variants.values()) if args.variant is None else [bundle.variant(args.variant)]
    verify_files(bundle, variants)
    with open_checkpoint(
        args.checkpoint,
        vision_tower=args.vision_tower,
        rpn=args.rpn,
        base=args.base,
        projector=args.projector,
        fit=bundle.spec.vision.fit,
        template=bundle.manifest.given_template,
    ) as source:
        require_torch("compare")
        require_memory("compare", bundle, source, variants)
        checks = list(_compare(bundle, source, variants))
    if args.json:
        _print_as_json(args, checks)
    else:
        _print_as_table(checks)
    failed = [check for check in checks if not check.ok]
    if failed:
        advice = (
            "name the checkpoint that it was exported from, with the same --vision-tower, --rpn, --base and --projector"
            if failed[0].kind == "checkpoint"
            else "export the checkpoint again"
        )
        raise RunFailed(
            f"{args.bundle} differs from {args.checkpoint}: {len(failed)} of {len(checks)} checks failed, first "
            f"{_place(failed[0])}: {_difference(failed[0])}; {advice}"
        )
    return 0


# What is compared ----------------------------------------------------------------------------------------------------


def _compare(bundle: Bundle, source: Checkpoint, variants: list[Variant]) -> Iterator[Check]:
    from sdrpn.cli.comparison import Steps, compare_source, questions_of
    from sdrpn.cli.progress import progress
    from sdrpn.model import model_from_checkpoint

    questions = questions_of(bundle, source)
    steps_each = len(bundle.variant().graphs) + 1 + len(questions)  # 1: the embedding table
    total = 2 + len(variants) * steps_each
    with progress("compare", "steps") as advance:
        advance(1, total)
        yield from compare_source(bundle, source)
        advance(2, total)
        model = model_from_checkpoint(source)
        for index, variant in enumerate(variants):
            yield from _compare_variant(
                bundle, variant, model, questions, Steps(advance, 2 + index * steps_each, total)
            )


def _compare_variant(
    bundle: Bundle, variant: Variant, model: SdRpnModel, questions: tuple[Question, ...], steps: Steps
) -> Iterator[Check]:
    from sdrpn.cli.comparison import GraphRuns, answers_of
    from sdrpn.compare.answers import compare_answers
    from sdrpn.compare.graphs import compare_embedding, compare_graphs
    from sdrpn.compare.simulation import runnable_bundle
    from sdrpn.runtime.embedding import TokenEmbedding
    from sdrpn.runtime.session import Session

    llm = bundle.spec.llm
    files = {name: _signature_from_file(bundle.file(graph.file)) for name, graph in variant.graphs.items()}
    with runnable_bundle(bundle, variant) as runs:
        with GraphRuns(runs, variant.name, steps) as graphs:
            context = bundle.manifest.max_context
            checks = list(compare_graphs(model, variant, graphs.run, max_context=context, files=files))
        yield from checks
        if any(not check.ok and check.kind in ("names", "axes", "shapes") for check in checks):
            return  # graphs that cannot be run cannot answer
        steps.take()
        embedding = bundle.file(variant.embedding)
        with TokenEmbedding(embedding, llm.vocabulary, llm.width, variant.embedding_dtype) as table:
            yield from compare_embedding(model, variant, table.rows)
        with Session.open(runs.path, variant=variant.name, verify=False) as session:
            answer = answers_of(session, steps)
            yield from compare_answers(model, questions, answer, variant=variant.name, precision=variant.numerics)


def _signature_from_file(path: Path) -> GraphSignature:
    """What an ONNX file itself declares. Raises BadBundle where it is none."""
    import onnx

    from sdrpn.bundle.bundle import TensorInfo
    from sdrpn.bundle.signatures import GraphSignature
    from sdrpn.errors import BadBundle

    def tensor(value: onnx.ValueInfoProto) -> TensorInfo:
        kind = value.type.tensor_type
        dims = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
        return TensorInfo(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        return GraphSignature.of(map(tensor, graph.input), map(tensor, graph.output))
    except Exception as error:  # protobuf's own errors have no base that is public
        raise BadBundle(f"{path} cannot be read as ONNX ({error}); export the checkpoint again") from error


# What is printed -----------------------------------------------------------------------------------------------------


def _print_as_json(args: argparse.Namespace, checks: list[Check]) -> None:
    from sdrpn.bundle.shipped import bundle_name
    from sdrpn.cli.output import print_json

    print_json(
        {
            "format_version": FORMAT_VERSION,
            "bundle": bundle_name(args.bundle),
            "checkpoint": args.checkpoint,
            "ok": all(check.ok for check in checks),
            "checks": checks,
        }
    )


def _print_as_table(checks: list[Check]) -> None:
    """A row for each kind of check of each graph: what failed first, or else what came closest to its limit."""
    from sdrpn.cli.output import print_table, print_text

    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.variant, check.graph, check.kind), []).append(check)
    print_table(
        ("variant", "graph", "check", "result", ""), [(*key, *_summary(group)) for key, group in groups.items()]
    )
    for check in checks:
        if check.note:
            print_text(f"{_place(check)}: {check.note}")
    print_text(f"{sum(check.ok for check in checks)} of {len(checks)} checks passed")


def _summary(group: list[Check]) -> tuple[str, str]:
    failed = [check for check in group if not check.ok]
    if failed:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"FAILED {len(failed)} of {len(group)}", f"{failed[0].tensor}: {_difference(failed[0])}{others}"
    numbers = [check for check in group if isinstance(check.found, float)]
    if not numbers:
        return f"ok {len(group)}", ""
    # Differences have their worst at the top, cosines at the bottom.
    worst = (min if group[0].kind == "roi cosine" else max)(numbers, key=lambda check: check.found)
    return f"ok {len(group)}", f"{worst.tensor}: {_difference(worst)}"


def _difference(check: Check) -> str:
    if check.limit is None:
        return f"{check.found}, expected {check.expected}"
    style, bound = (".7f", "at least") if check.kind == "roi cosine" else (".1e", "at most")
    found = f"{check.found:{style}}" if isinstance(check.found, float) else check.found
    return f"{found}, {bound} {check.limit:g}"


def _place(check: Check) -> str:
    return f"{check.variant} {check.graph}, {check.kind} of {check.tensor}"
