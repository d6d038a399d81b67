"""`sdrpn demo`: the shipped model on the shipped scene.

The JSON form is an object with these entries:
    question   what was asked
    expected   the true answer, which the model does not see
    plain      text and seconds of plain LLaVA, one look at the whole picture
    sdrpn      text, seconds and boxes_xyxy_px of the two looks, in pixels of the picture
    overlay    the picture that was written
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import positive_int

if TYPE_CHECKING:
    from sdrpn.demo import DemoScene
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.runtime import Answer, Session

HELP = "ask the model that comes with this package about a scene that comes with it"
DESCRIPTION = """\
Ask the small model that comes with this package (default) about a picture whose detail its first look cannot read: once
with that look alone, once with a second look at the region that it found. Prints both answers, the true one and the
time they took, and draws where it looked. Runs on any CPU and needs the base install only.

  sdrpn demo
"""

OVERLAY = Path("sdrpn-demo.png")
MAX_NEW_TOKENS = 8  # a code and its end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "--overlay", metavar="OUT.png", type=Path, default=OVERLAY, help=f"picture to write (default: {OVERLAY})"
    )
    parser.add_argument("--threads", metavar="N", type=positive_int, help="CPU threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print answers, times and boxes as JSON")


def run(args: argparse.Namespace) -> int:
    """Ask twice, print, and draw."""
    from sdrpn.bundle.shipped import DEFAULT_NAME
    from sdrpn.cli.output import print_json
    from sdrpn.cli.output_file import PICTURES, require_output_file
    from sdrpn.demo import shipped_scene
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.runtime import Session

    require_output_file("--overlay", args.overlay, tuple(PICTURES))
    scene = shipped_scene()
    with Session.open(DEFAULT_NAME, backend="onnxruntime", threads=args.threads) as session:
        first_look_px = session.spec.vision.image_size_px
        _ask(session, scene, None)  # what only a first question takes, such as memory, is not timed
        plain, plain_s = _ask(session, scene, None)
        again, again_s = _ask(session, scene, RoiPolicy(scene.threshold))
    _write_overlay(args.overlay, scene, plain, again, first_look_px)
    if args.json:
        print_json(
            {
                "question": scene.question,
                "expected": scene.expected,
                "plain": {"text": plain.text, "seconds": plain_s},
                "sdrpn": {"text": again.text, "seconds": again_s, "boxes_xyxy_px": again.boxes_xyxy_px},
                "overlay": args.overlay,
            }
        )
    else:
        _print(scene, (plain, plain_s), (again, again_s), args.overlay)
    return 0


def _ask(session: Session, scene: DemoScene, roi: RoiPolicy | None) -> tuple[Answer, float]:
    """The answer and how long it took from the picture's file on, nothing of an earlier question reused."""
    import time

    session.forget_image()
    start = time.perf_counter()
    answer = session.answer(scene.picture, scene.question, roi=roi, max_new_tokens=MAX_NEW_TOKENS)
    return answer, time.perf_counter() - start


def _right(scene: DemoScene, answer: Answer) -> bool:
    from sdrpn.evaluation.scores import exact_match

    return exact_match(answer.text, (scene.expected,)) == 1.0


def _write_overlay(overlay: Path, scene: DemoScene, plain: Answer, again: Answer, first_look_px: int) -> None:
    from sdrpn.cli.output_file import save_picture
    from sdrpn.demo import Told, draw_demo
    from sdrpn.images.image import open_image

    picture = draw_demo(
        open_image(scene.picture),
        scene.question,
        scene.expected,
        Told(plain.text, _right(scene, plain)),
        Told(again.text, _right(scene, again)),
        roi_map=again.roi_map,
        boxes_xyxy_px=again.boxes_xyxy_px,
        first_look_px=first_look_px,
    )
    save_picture(picture, overlay)


def _print(scene: DemoScene, plain: tuple[Answer, float], again: tuple[Answer, float], overlay: Path) -> None:
    from sdrpn.cli.output import print_table, print_text

    rows = [("true answer", scene.expected, "", "", "")]
    for name, (answer, seconds) in (("one look", plain), ("two looks", again)):
        verdict = "right" if _right(scene, answer) else "wrong"
        boxes = "; ".join(", ".join(map(str, box)) for box in answer.boxes_xyxy_px)
        rows.append((name, answer.text, verdict, f"{seconds:.3f}", boxes))
    print_table(("", "answer", "", "seconds", "looked again at, px"), rows, title=scene.question)
    print_text(f"where it looked: {overlay}")
