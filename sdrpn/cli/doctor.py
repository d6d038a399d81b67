"""`sdrpn doctor`: what this machine can run, what is missing, and the command that installs it.

The JSON form is that of sdrpn.workflows.diagnosis.
"""

from __future__ import annotations

import argparse

HELP = "show what this machine can run and what is missing"
DESCRIPTION = """\
Show what this machine can run, which versions of libraries are installed, what each extra adds, what is missing and
the command that installs it; with --bundle also how much memory the bundle needs here, with and without the part that
answers. Exits 0.

With --device the machine is tested, step by step: CUDA (memory, copies, order on a stream, captured graphs), the
compiled image path, and with --bundle a bundle's engines or graphs (numbers, answers, repetition, time, memory). A
failed step does not stop the others; exits 1 if one failed. Attach the report to a bug report.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    from sdrpn.cli.device_check import add_device_arguments

    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_device_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the diagnosis, or test the device."""
    from sdrpn.cli.device_check import require_device, run_checks
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.workflows.diagnosis import diagnose_machine
    from sdrpn.workflows.diagnosis_text import diagnosis_text

    if args.device:
        return run_checks(args)
    require_device(args)
    diagnosis = diagnose_machine(args.bundle, args.parts or "all")
    if args.json:
        print_json(diagnosis.to_json())
    else:
        print_report(diagnosis_text(diagnosis))
    return 0
