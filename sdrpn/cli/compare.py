"""`sdrpn compare`: does a bundle still say what its checkpoint says?"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compare a bundle with the checkpoint that it came from"
DESCRIPTION = """\
Run every graph of a bundle against the same part of the checkpoint in PyTorch: names, axes, shapes and values, in that
order; then the whole: RoI map, boxes and generated tokens. Exits 1 when something differs by more than it may.
Needs the [train] extra.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that `sdrpn export` wrote")
    parser.add_argument(
        "--checkpoint", metavar="CHECKPOINT", type=Path, required=True, help="folder that the bundle was exported from"
    )
    parser.add_argument("--vision-tower", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--rpn", metavar="FILE", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--base", metavar="DIR", type=Path, help="as given to `sdrpn export`")
    parser.add_argument("--variant", metavar="NAME", help="compare this variant only (default: all)")
    parser.add_argument("--json", action="store_true", help="print every difference as JSON")
