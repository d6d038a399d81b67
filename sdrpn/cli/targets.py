"""`sdrpn targets`: the devices that engines are built for.

The JSON form is an object: `targets`, by name, each an sdrpn.engines.target.Target.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdrpn.workflows.engine_build import Target

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
    from sdrpn.terminal.output import print_json, print_table, print_text
    from sdrpn.workflows.engine_build import read_targets

    targets = read_targets()
    if args.json:
        print_json({"targets": targets})
        return 0
    columns = ("target", "device", "capability", "library", "dialect", "precisions", "memory", "built")
    print_table(columns, [_row(target) for target in targets.values()])
    for target in targets.values():
        if target.note:
            print_text(f"{target.name}: {target.note}")
    return 0


def _row(target: Target) -> tuple[str, ...]:
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
