"""`sdrpn targets`: the devices that engines are built for.

The JSON form is an object: `targets`, by name, each an sdrpn.engines.target.Target.
"""

from __future__ import annotations

import argparse

HELP = "show the devices that engines are built for"
DESCRIPTION = """\
Show the targets of `sdrpn build`: the device, its compute capability, its TensorRT version and where its engines are
built. To define your own target, write a file of the same form: sdrpn build BUNDLE --target my-device.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print everything about each target as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.workflows.engine_build import read_targets
    from sdrpn.workflows.engine_build_text import targets_text

    targets = read_targets()
    if args.json:
        print_json({"targets": targets})
        return 0
    print_report(targets_text(targets.values()))
    return 0
