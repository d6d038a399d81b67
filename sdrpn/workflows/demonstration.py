"""The shipped model on the shipped scene: asked with one look and with two, and drawn with both answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from sdrpn.bundle.shipped import DEMO_NAME
from sdrpn.evaluation.scores import exact_match
from sdrpn.families.registry import family_of, seen_of
from sdrpn.images.image import open_image
from sdrpn.method.geometry import Seen
from sdrpn.method.policy import OWN, Roi
from sdrpn.reports.text import Table, Text
from sdrpn.runtime import Answer, Session
from sdrpn.tags import DemoScene, Told, draw_demo, shipped_scene

__all__ = ["Demonstration", "TimedAnswer", "run_demo"]

MAX_NEW_TOKENS = 8  # a code and the stop token


@dataclass(frozen=True)
class TimedAnswer:
    """One answer, the seconds from opening the picture file on, and whether it is right."""

    answer: Answer
    seconds: float
    right: bool


@dataclass(frozen=True)
class Demonstration:
    """Both answers about the shipped scene."""

    scene: DemoScene
    plain: TimedAnswer  # one look
    again: TimedAnswer  # two looks
    first_look_wh: tuple[int, int]  # pixels of the model's input
    seen: Seen  # what the grid covers of the picture

    def picture(self) -> Image:
        """Draw the first look, where it points, and the second look, with both answers."""
        answer = self.again.answer
        return draw_demo(
            open_image(self.scene.picture),
            self.scene.question,
            self.scene.expected,
            Told(self.plain.answer.text, self.plain.right),
            Told(answer.text, self.again.right),
            roi_map=answer.roi_map,
            boxes_xyxy_px=answer.boxes_xyxy_px,
            first_look_wh=self.first_look_wh,
            seen=self.seen,
        )

    def to_json(self) -> dict[str, Any]:
        """The question, the true answer, and text and seconds of both answers; boxes in pixels of the picture."""
        answer = self.again.answer
        return {
            "question": self.scene.question,
            "expected": self.scene.expected,
            "plain": {"text": self.plain.answer.text, "seconds": self.plain.seconds},
            "sdrpn": {"text": answer.text, "seconds": self.again.seconds, "boxes_xyxy_px": answer.boxes_xyxy_px},
        }

    def text(self) -> Text:
        """One row per answer, the true one first."""
        rows = [("true answer", self.scene.expected, "", "", "")]
        for name, timed in (("one look", self.plain), ("two looks", self.again)):
            boxes = "; ".join(", ".join(map(str, box)) for box in timed.answer.boxes_xyxy_px)
            rows.append((name, timed.answer.text, "right" if timed.right else "wrong", f"{timed.seconds:.3f}", boxes))
        return [Table(self.scene.question, ("", "answer", "", "seconds", "looked again at, px"), rows)]


def run_demo(threads: int | None = None) -> Demonstration:
    """Ask the shipped model about the shipped scene. Needs the base install only.

    Args:
        threads: of the CPU; None: one per free core, and a single one for a small model
    """
    scene = shipped_scene()
    with Session.open(DEMO_NAME, backend="onnxruntime", threads=threads) as session:
        _ask(session, scene, None)  # warm-up: one-time costs such as memory allocation are not timed
        plain, again = _ask(session, scene, None), _ask(session, scene, OWN)
        spec, picture = session.spec, open_image(scene.picture)
        first_look = family_of(spec).seen_picture(picture, spec.vision)
        return Demonstration(scene, plain, again, first_look.size, seen_of(spec))


def _ask(session: Session, scene: DemoScene, roi: Roi) -> TimedAnswer:
    """Answer without reusing anything of an earlier question."""
    session.forget_image()
    start = time.perf_counter()
    answer = session.answer(scene.picture, scene.question, roi=roi, max_new_tokens=MAX_NEW_TOKENS)
    seconds = time.perf_counter() - start
    return TimedAnswer(answer, seconds, exact_match(answer.text, (scene.expected,)) == 1.0)
