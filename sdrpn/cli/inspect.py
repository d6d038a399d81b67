"""`sdrpn inspect`: what a bundle holds.

The JSON form is the manifest, whose `format_version` is that of the bundle; with --engines an object: `targets`, a list
as sdrpn.workflows.inspection.engines_to_json makes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.errors import BadInput
from sdrpn.terminal.model_folders import add_bundle_argument

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
    add_bundle_argument(parser)
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


def run(args: argparse.Namespace) -> int:
    """Read the manifest, compare sizes and small digests, and print."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.workflows.inspection import inspect_bundle
    from sdrpn.workflows.inspection_text import bundle_text

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
    print_report(bundle_text(bundle))
    return 0


def _inspect_engines(args: argparse.Namespace) -> int:
    from sdrpn.reports.table_page import PAGES
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written, require_output_file
    from sdrpn.workflows.inspection import engines_to_json, inspect_engines, read_asked, write_engine_page
    from sdrpn.workflows.inspection_text import engines_text

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
        print_report(engines_text(report))
        if args.report is not None:
            report_written(args.report, "page of the engines")
    unfit = [problem for target in report for problem in target.problems if problem.broken or args.target is not None]
    return 1 if unfit else 0
