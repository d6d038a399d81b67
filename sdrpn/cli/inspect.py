"""`sdrpn inspect`: what a bundle holds.

The JSON form is the manifest, whose `format_version` is that of the bundle; with --engines an object: `targets`, a list
as sdrpn.workflows.inspection.engines_to_json makes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder
from sdrpn.cli.model_folders import add_model_options
from sdrpn.errors import BadInput

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, GraphInfo, Manifest, Variant

HELP = "show what a bundle holds"
DESCRIPTION = """\
Show what a bundle holds: the model's sizes, where its layers are cut, the RPN, the variants with their graphs, inputs
and outputs, and the size of every file.

With --engines: the engines of each target, and whether they fit the bundle and this machine, one line per problem.
No engine is loaded. Exits 1 for an engine that is broken on every machine, and with --target also for one that does
not fit this machine. --report writes sizes, seconds, memory and gates of all engines as a page.

  sdrpn inspect bundle --engines --report engines.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument("--verify", action="store_true", help="also check the digests of large files")
    parser.add_argument("--engines", action="store_true", help="show the engines and whether they fit this machine")
    parser.add_argument("--layers", action="store_true", help="with --engines: also the kernels that were chosen")
    parser.add_argument("--target", metavar="NAME", help="with --engines: only those of this target")
    parser.add_argument(
        "--report", metavar="FILE", type=Path, help="with --engines: also write a page, as .md or .html"
    )
    parser.add_argument(
        "--asked",
        metavar="FILE",
        type=Path,
        help="with --report: JSON object of requested targets and their outcome, so that the page also lists targets "
        "without engines",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    add_model_options(parser, "bundle")


def run(args: argparse.Namespace) -> int:
    """Read the manifest, compare sizes and small digests, and print."""
    from sdrpn.terminal.output import print_json
    from sdrpn.workflows.inspection import inspect_bundle

    if args.engines:
        return _inspect_engines(args)
    for option, value in (
        ("--layers", args.layers),
        ("--target", args.target),
        ("--report", args.report),
        ("--asked", args.asked),
    ):
        if value:
            raise BadInput(f"{option} needs --engines; add it")
    bundle = inspect_bundle(args.bundle, verify=args.verify)
    if args.json:
        print_json(bundle.manifest.to_json())
        return 0
    _print_model(bundle)
    if bundle.release_targets:
        _print_release(bundle)
        return 0
    for variant in bundle.manifest.variants.values():
        _print_variant(bundle.manifest, variant)
    return 0


def _inspect_engines(args: argparse.Namespace) -> int:
    from sdrpn.cli.engine_report import print_report
    from sdrpn.reports.table_page import PAGES
    from sdrpn.terminal.output import print_json
    from sdrpn.terminal.output_file import report_written, require_output_file
    from sdrpn.workflows.inspection import engines_to_json, inspect_engines, read_asked, write_engine_page

    if args.report is not None:
        require_output_file("--report", args.report, PAGES)
    if args.asked is not None and args.report is None:
        raise BadInput("--asked needs --report FILE; add it")
    asked = read_asked(args.asked) if args.asked is not None else None
    report = inspect_engines(args.bundle, args.target, verify=args.verify, with_layers=args.layers)
    if args.report is not None:
        write_engine_page(args.report, report, asked)
    if args.json:
        print_json({"targets": engines_to_json(report)})
    else:
        print_report(report)
        if args.report is not None:
            report_written(args.report, "page of the engines")
    unfit = [problem for target in report for problem in target.problems if problem.broken or args.target is not None]
    return 1 if unfit else 0


def _print_release(bundle: Bundle) -> None:
    from sdrpn.terminal.output import print_text

    print_text(
        f"a release: engines for {', '.join(bundle.release_targets)}, the token embedding and the tokenizer, without "
        "the ONNX graphs that the engines were built from"
    )
    print_text(f"  which GPU each fits, and whether this one:  sdrpn inspect {bundle.path} --engines")
    print_text(f'  on such a GPU:                              sdrpn ask {bundle.path} IMAGE "QUESTION"')
    print_text("build, optimize, verify, compare and answers on a CPU take the whole bundle that it was made from")


def _print_model(bundle: Bundle) -> None:
    from sdrpn.families.registry import family_of
    from sdrpn.terminal.output import print_table
    from sdrpn.workflows.inspection import engine_sets

    manifest = bundle.manifest
    engines = [
        f"{engines_of_target.target} ({', '.join(engines_of_target.engines)})"
        for engines_of_target in engine_sets(bundle)
    ]
    spec, llm = manifest.spec, manifest.spec.llm
    rpn = "none: plain LLaVA only" if spec.rpn is None else f"{spec.rpn.layers} layers, loss {spec.rpn.loss}"
    rows = [
        *family_of(spec).described(spec.vision),
        ("LLM", f"{llm.layers} layers, width {llm.width}, {llm.heads} heads ({llm.kv_heads} for keys and values)"),
        ("tap", f"after layer {spec.tap_layer}: trunk {spec.tap_layer}, tail {spec.tail_layers} layers"),
        ("RPN", rpn),
        *([] if spec.rpn is None else [("looks again", f"at cells above {manifest.own_policy.about}")]),
        ("context", f"{manifest.max_context} of {llm.max_context} positions"),
        ("vocabulary", f"{llm.vocabulary} tokens, tokenizer {manifest.tokenizer or 'none: token ids only'}"),
        ("prompt", spec.prompt.template if "{" not in spec.prompt.template else "chat template"),
        ("from", f"{manifest.source.get('checkpoint')} ({manifest.source.get('layout')})"),
        ("engines for", "; ".join(engines) or "none"),
        ("written by", ", ".join(f"{name} {number}" for name, number in sorted(manifest.tools.items()))),
    ]
    print_table(("model", ""), rows)


def _print_variant(manifest: Manifest, variant: Variant) -> None:
    from sdrpn.bundle.graphs import graphs_of
    from sdrpn.host.sizes import text_from_bytes
    from sdrpn.terminal.output import print_table

    rows = [row for graph in graphs_of(manifest.spec) for row in _graph_rows(manifest, variant.graphs[graph.name])]
    size_bytes = sum(manifest.files[name].size_bytes for name in variant.files)
    title = f"{variant.name}: opset {variant.opset}, {text_from_bytes(size_bytes)} with the token embedding"
    print_table(("graph", "size", "", "tensor", "type", "dims"), rows, title=title)


def _graph_rows(manifest: Manifest, graph: GraphInfo) -> Iterator[tuple[str, ...]]:
    """One row per tensor; the caches, which are alike in all layers, share a row."""
    from sdrpn.host.sizes import text_from_bytes

    head = graph.name, text_from_bytes(_size(manifest, graph))
    for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
        caches = [tensor for tensor in tensors if tensor.is_cache]
        others = [tensor for tensor in tensors if not tensor.is_cache]
        for tensor in (*others, *caches[:1]):
            more = f" and {len(caches) - 1} more" if tensor in caches and len(caches) > 1 else ""
            yield (*head, side, f"{tensor.name}{more}", tensor.dtype, f"({', '.join(map(str, tensor.dims))})")
            head = "", ""


def _size(manifest: Manifest, graph: GraphInfo) -> int:
    return sum(manifest.files[name].size_bytes for name in (graph.file, *graph.weights))
