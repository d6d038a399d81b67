"""Questions about a scene and their true answers. Knows no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdrpn.tags.scene import Scene, Tag

__all__ = ["SEEN_FRAMES", "SHIFTED_FRAMES", "TagQuestion", "coarse_question", "code_question"]

Kind = Literal["code", "shape", "border", "list"]

SEEN_FRAMES: dict[Kind, tuple[str, ...]] = {
    "code": (
        "what is the code on the {} tag ?",
        "what does the {} tag say ?",
        "read the {} plate .",
        "which number is on the {} tag ?",
        "please tell me the code of the {} plate .",
        "i see a {} tag . what is its code ?",
    ),
    "shape": ("what shape is the {} tag ?", "please tell me the shape of the {} plate ."),
    "border": ("what is the border of the {} tag ?", "which border is on the {} plate ?"),
    "list": ("list the tags .", "which tags are here ?"),
}
# Other sentences, made only of words that occur in the questions above.
SHIFTED_FRAMES: dict[Kind, tuple[str, ...]] = {
    "code": (
        "tell me which code the {} plate is of .",
        "the {} tag here : what is its number ?",
        "please read me the number of the {} tag .",
    ),
}


@dataclass(frozen=True)
class TagQuestion:
    """A question, its true answer, and the tag that it is about (None: all tags)."""

    text: str
    answer: str
    kind: Kind
    tag: Tag | None


def code_question(rng: np.random.Generator, tag: Tag, frames: dict[Kind, tuple[str, ...]] = SEEN_FRAMES) -> TagQuestion:
    """Ask for the code of a tag, which the first pass cannot read."""
    return TagQuestion(_frame(rng, frames["code"]).format(tag.colour), tag.code, "code", tag)


def coarse_question(rng: np.random.Generator, scene: Scene) -> TagQuestion:
    """Ask for what the first pass can see: a shape, a border, or the tags from left to right."""
    kind: Kind = ("shape", "border", "list")[rng.choice(3, p=(0.45, 0.45, 0.1))]
    frame = _frame(rng, SEEN_FRAMES[kind])
    if kind == "list":
        ordered = sorted(scene.tags, key=lambda tag: tag.box_xyxy_px[0])
        return TagQuestion(frame, " ".join(tag.colour for tag in ordered), kind, None)
    tag = scene.tags[rng.integers(len(scene.tags))]
    return TagQuestion(frame.format(tag.colour), tag.shape if kind == "shape" else tag.border, kind, tag)


def _frame(rng: np.random.Generator, frames: tuple[str, ...]) -> str:
    return frames[rng.integers(len(frames))]
