"""`sdrpn demo`: the shipped model on the shipped scene.

The JSON form is an object with these entries:
    question   what was asked
    expected   the true answer, which the model does not see
    plain      text and seconds of one look at the whole picture
    sdrpn      text, seconds and boxes_xyxy_px of the two looks, in pixels of the picture
    overlay    the picture that was written
    picture    the scene that was asked about, written beside it
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.errors import BadInput
from sdrpn.terminal.arguments import add_threads_argument

HELP = "ask the shipped model about the shipped scene"
DESCRIPTION = """\
Ask the small model that ships with this package (demo) about a picture whose detail its first look cannot resolve: once
with that look alone, and once with a second look at the region that it found. Prints both answers, the true one and
the time of each, and draws where the model looked. Writes the scene beside that picture, to try other verbs
with. Runs on any CPU and needs the base install only.

  sdrpn demo
  sdrpn look demo sdrpn-scene.png "what is the code on the yellow tag ?"
"""

OVERLAY = Path("sdrpn-demo.png")
SCENE_NAME = "sdrpn-scene.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--overlay",
        metavar="OUT.png",
        type=Path,
        default=OVERLAY,
        help=f"picture to write, with {SCENE_NAME} beside it (default: {OVERLAY})",
    )
    add_threads_argument(parser)
    parser.add_argument("--json", action="store_true", help="print answers, times and boxes as JSON")


def run(args: argparse.Namespace) -> int:
    """Ask twice, print both answers, and draw where the model looked."""
    from sdrpn.host.atomic import replacing_file
    from sdrpn.terminal.output import print_json, print_report, print_text
    from sdrpn.terminal.output_file import PICTURES, require_output_file, save_picture
    from sdrpn.workflows.demonstration import run_demo

    require_output_file("--overlay", args.overlay, tuple(PICTURES))
    scene = args.overlay.parent / SCENE_NAME
    if scene == args.overlay:
        raise BadInput(f"--overlay {args.overlay} is what the scene is called; name another file")
    require_output_file("--overlay", scene, ())
    found = run_demo(args.threads)
    save_picture(found.picture(), args.overlay)
    with replacing_file(scene) as temporary:
        temporary.write_bytes(found.scene.picture.read_bytes())
    if args.json:
        print_json({**found.to_json(), "overlay": args.overlay, "picture": scene})
    else:
        print_report(found.text())
        print_text(f"where it looked: {args.overlay}")
        print_text(f"the scene, to try other verbs with: {scene}")
    return 0
