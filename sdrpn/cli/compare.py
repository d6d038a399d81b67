"""`sdrpn compare`: the former name of `sdrpn verify --exact`, which does the same."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.cli import verify
from sdrpn.terminal.model_folders import add_bundle_argument

HELP = "the former name of verify --exact"
DESCRIPTION = """\
The same as `sdrpn verify --exact`, which replaces it. This name is removed in the next version.

  sdrpn verify bundle --exact --checkpoint llava-v1.5-7b-roi-K15T3 --variant fused-fp16
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser, "checkpoint", "base", "vision_tower")
    parser.add_argument(
        "--checkpoint", metavar="CHECKPOINT", type=Path, required=True, help="folder that the bundle was exported from"
    )
    parser.add_argument("--variant", metavar="NAME", help="compare this variant only (default: all)")
    verify.add_source_arguments(parser)
    parser.set_defaults(target=None, exact=True)


def run(args: argparse.Namespace) -> int:
    """Warn about the new name, and run `sdrpn verify --exact`."""
    from sdrpn.terminal.output import warn

    warn("`sdrpn compare` is called `sdrpn verify --exact` now; the former name goes away in the next version")
    return verify.run(args)
