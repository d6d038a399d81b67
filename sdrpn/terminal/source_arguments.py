"""Arguments of verbs that take frames of a source: which frames, and how long a source may be silent."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import non_negative_number, positive_int

if TYPE_CHECKING:
    from sdrpn.frames.thinning import ReadOptions

__all__ = ["add_frame_options", "read_options", "require_no_frame_options"]

GIVE_UP_S = 60.0
# Which frames are taken unless something else is asked for.
_USUAL = {"every": 1, "max_fps": None, "drop": None, "frames": None, "give_up": GIVE_UP_S}


def add_frame_options(group: argparse._ArgumentGroup) -> None:
    """Declare further sources, and which frames are taken."""
    group.add_argument(
        "--source",
        metavar="SOURCE",
        dest="more_sources",
        action="append",
        default=[],
        help="a further source, looked at in turns with the others. Can be given several times",
    )
    group.add_argument("--every", metavar="N", type=positive_int, default=1, help="take every Nth frame (default: 1)")
    group.add_argument(
        "--max-fps", metavar="F", type=non_negative_number, help="take no more than F frames of a source per second"
    )
    group.add_argument(
        "--drop",
        action=argparse.BooleanOptionalAction,
        help="leave out frames that come while the model works; a video is then played at its own speed (default: for "
        "cameras and streams)",
    )
    group.add_argument(
        "--frames", metavar="N", type=positive_int, help="end after N frames (default: with the sources)"
    )
    group.add_argument(
        "--give-up",
        metavar="S",
        type=non_negative_number,
        default=GIVE_UP_S,
        help="seconds after which a camera or stream that broke off is no longer tried (default: 60)",
    )


def read_options(args: argparse.Namespace) -> ReadOptions:
    """What was asked for. Raises BadInput for numbers that cannot be."""
    from sdrpn.frames.thinning import ReadOptions

    for option in ("max_fps", "give_up"):
        if getattr(args, option) == 0:
            raise BadInput(f"--{option.replace('_', '-')} is 0; expected a number above 0")
    return ReadOptions(args.drop, args.every, args.max_fps, give_up_s=args.give_up)


def require_no_frame_options(args: argparse.Namespace) -> None:
    """Raise BadInput for an option that says which frames are taken, where there is one picture."""
    for name, usual in _USUAL.items():
        value = getattr(args, name)
        if value != usual:
            option = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            raise BadInput(f"{option} is for a video, a camera or several pictures, and there is one; leave it out")
