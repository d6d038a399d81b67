"""`sdrpn doctor --device`: run the checks of a device, and print, write and record what they found.

The JSON form is `sdrpn.reports.device_report.DeviceReport.to_json`: format_version, ok, summary, created, version,
device, machine, libraries, subject {bundle, variant, backend, target} or null, and results: a list of {group, name,
state ("passed", "failed", "skipped"), detail, seconds, figures}.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import device_number
from sdrpn.terminal.arguments import add_threads_argument, bundle_folder
from sdrpn.terminal.look_arguments import add_parts_argument
from sdrpn.terminal.model_folders import name_model_folders

if TYPE_CHECKING:
    from sdrpn.workflows.device_check import CheckupRequest

__all__ = ["add_device_arguments", "require_device", "run_checks"]


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --device and the options that need it."""
    parser.add_argument("--device", action="store_true", help="test this machine, step by step")
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        type=bundle_folder,
        help="say what this bundle needs here; with --device: also test it; `demo` works",
    )
    name_model_folders(parser, "bundle")
    parser.add_argument(
        "--backend", metavar="NAME", help="with --bundle: the backend that runs it; default: as `sdrpn ask` chooses"
    )
    parser.add_argument(
        "--target", metavar="NAME", help="with --bundle: the target whose engines run; default: the first that fit"
    )
    add_parts_argument(parser, default=None)  # None: nobody named it, which is refused without a bundle
    parser.add_argument(
        "--gpu", type=device_number, metavar="N", help="with --device: which GPU, as CUDA numbers them; default: 0"
    )
    add_threads_argument(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="with --device: write a page, .html or .md")
    parser.add_argument("--record", type=Path, metavar="FILE", help="with --device: append one JSON line to this file")


def require_device(args: argparse.Namespace) -> None:
    """Raises BadInput for an option that needs --device."""
    for name in ("backend", "target", "gpu", "threads", "report", "record"):
        if getattr(args, name) is not None:
            raise BadInput(f"--{name} is given without --device; add --device to test the machine")
    _require_bundle(args)


def _require_bundle(args: argparse.Namespace) -> None:
    for name in ("backend", "target", "parts", "threads"):
        if getattr(args, name) is not None and args.bundle is None:
            raise BadInput(f"--{name} is given without --bundle; name the bundle to check")


def run_checks(args: argparse.Namespace) -> int:
    """Run the checks; 0 if none failed."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import append_json_line, write_text
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.device_check import check

    request = _request(args)
    with progress("device check", "steps") as advance:
        report = check(request, advance)
    if args.report is not None:
        write_text(args.report, report.page(args.report))
    if args.record is not None:
        append_json_line(args.record, report.to_row())
    if args.json:
        print_json(report.to_json())
    else:
        print_report(report.text())
        print_report(f"wrote {path}" for path in (args.report, args.record) if path is not None)
    return 0 if report.ok else 1


def _request(args: argparse.Namespace) -> CheckupRequest:
    """Check the request before anything runs. Raises BadInput."""
    from sdrpn.reports.table_page import PAGES
    from sdrpn.terminal.output_file import require_output_file
    from sdrpn.workflows.device_check import CheckupRequest

    _require_bundle(args)
    for option, path, suffixes in (("--report", args.report, PAGES), ("--record", args.record, ())):
        if path is not None:
            require_output_file(option, path, suffixes)
    names = ("bundle", "backend", "target", "parts", "gpu", "threads")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.bundle is not None:
        options["bundle"] = str(args.bundle)  # the request travels to other processes as JSON
    return CheckupRequest(**options)
