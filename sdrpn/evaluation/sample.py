"""One question with its true answers, for any task. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from PIL import Image

from sdrpn.method.grids import Box

__all__ = ["Sample"]


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    id: unique in its task.
    open_picture: opens or renders the picture, upright RGB; raises BadImage. Called each time the picture is needed, so
        that a task with many large pictures keeps none in memory.
    question: the text given to the model, including the task's instruction.
    answers: the true answers; the task's score defines what several mean.
    boxes_xyxy_px: what the question is about, in pixels of the picture; empty where the task does not say.
    category: for means by category; "" where there are none.
    details: further entries of the task's own files that its score needs.
    """

    id: str
    open_picture: Callable[[], Image.Image]
    question: str
    answers: tuple[str, ...]
    boxes_xyxy_px: tuple[Box, ...] = ()
    category: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
