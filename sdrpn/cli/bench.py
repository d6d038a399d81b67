"""`sdrpn bench`: how long answers take, stage by stage, and how sides compare.

The JSON form is sdrpn.reports.bench_report.BenchReport: machine, command, runs, cases (side, case, stages with p50,
p95 and p99 in seconds, tokens per second, ratios, median_answer_s), peak_rss_bytes, energy.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import positive_int
from sdrpn.terminal.arguments import add_threads_argument, bundle_folder, filled
from sdrpn.terminal.look_arguments import add_look_arguments
from sdrpn.terminal.model_folders import add_bundle_argument

if TYPE_CHECKING:
    from sdrpn.workflows.benchmark import BenchRequest

HELP = "measure how long answers take, stage by stage"
DESCRIPTION = """\
Answer with the number of crops forced (the RPN still runs) and time every stage: p50, p95 and p99 over the counted
runs, tokens per second, throughput against one look alone. Questions are token ids, so any bundle works. With --compare
all sides are loaded at once and are measured in turn, in one run; "torch" is the reference in PyTorch, which computes
everything again in the second pass.

  sdrpn bench bundle --cases plain,one-box --html bench.html
  sdrpn bench bundle --variant fused-int4-cpu --compare bundle:fused-fp32
  sdrpn bench bundle --variant fused-int4-cpu --compare bundle:fused-int4-cpu:standard
  sdrpn bench bundle --compare torch --checkpoint CHECKPOINT
"""

ALL_CASES = "plain,gate-skips,no-box,one-box,mask,two-box,second-question"
LEAST_RUNS = 10  # for a percentile to mean anything


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser, "checkpoint")
    parser.add_argument("--variant", metavar="NAME", help="variant to measure (default: the one that suits a CPU best)")
    parser.add_argument("--backend", default="onnxruntime", help="as for `sdrpn ask` (default: onnxruntime)")
    parser.add_argument(
        "--cases", metavar="A,B", default=ALL_CASES, help=f"some of {ALL_CASES} (default: all that the model has)"
    )
    add_threads_argument(parser)
    parser.add_argument(
        "--runs",
        metavar="N",
        type=positive_int,
        default=LEAST_RUNS,
        help="measured runs, after one warm-up run (default: 10)",
    )
    parser.add_argument(
        "--new-tokens", metavar="N", type=positive_int, default=16, help="tokens per answer (default: 16)"
    )
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        action="append",
        default=[],
        help="another side: BUNDLE, BUNDLE:VARIANT, BUNDLE:VARIANT:standard for the bundle's own graphs, not those "
        "of `sdrpn optimize`, BUNDLE:VARIANT:BACKEND, BUNDLE:VARIANT:openvino:int8 for caches in 8 bits; or torch. Can "
        "be given several times",
    )
    parser.add_argument(
        "--no-optimized", action="store_true", help="run BUNDLE's own graphs, not those of `sdrpn optimize`"
    )
    parser.add_argument("--kv-cache", choices=("int8",), help="caches of BUNDLE, as for `sdrpn ask`")
    add_look_arguments(parser, budget_only=True)
    parser.add_argument("--checkpoint", metavar="DIR", type=Path, help="checkpoint for --compare torch")
    parser.add_argument("--no-verify", action="store_true", help="do not check the digests of large files")
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write a page with charts")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the report as JSON")
    form.add_argument("--csv", action="store_true", help="print every stage as CSV")


def run(args: argparse.Namespace) -> int:
    """Measure and print the report."""
    from sdrpn.reports.bench_report import csv_text, html_text
    from sdrpn.reports.bench_text import bench_text
    from sdrpn.terminal.output import print_document, print_json, print_report, warn
    from sdrpn.terminal.output_file import report_written, require_output_file, write_text
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.benchmark import bench

    if ("torch" in args.compare) != (args.checkpoint is not None):
        raise BadInput("--compare torch and --checkpoint DIR go together: name both or none")
    if args.html is not None:
        require_output_file("--html", args.html, (".html", ".htm"))
    if args.runs < LEAST_RUNS:
        warn(f"--runs {args.runs}: with fewer than {LEAST_RUNS} runs only the median means much")
    with progress("bench", "answers") as advance:
        report = bench(_request(args), advance)
    if args.json:
        print_json(report)
    elif args.csv:
        print_document(csv_text(report))
    else:
        print_report(bench_text(report))
    if args.html is not None:
        write_text(args.html, html_text(report))
        if not args.json:
            report_written(args.html, "page with charts")
    return 0


def _request(args: argparse.Namespace) -> BenchRequest:
    from sdrpn.workflows.benchmark import BenchBundle, BenchReference, BenchRequest

    return filled(
        BenchRequest,
        args,
        optimized=not args.no_optimized,
        others=tuple(
            BenchReference(args.checkpoint)
            if other == "torch"
            else BenchBundle.from_text(other, bundle_folder(other.partition(":")[0]))
            for other in args.compare
        ),
        cases=tuple(filter(None, args.cases.split(","))),
        verify=not args.no_verify,
        command=shlex.join(["sdrpn", *sys.argv[1:]]),
    )
