"""One question with its true answers, of any task. Knows no model."""

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
    open_picture: opens or renders the picture, upright RGB; raises BadImage. Called anew whenever it is needed, so a
        task of many large pictures holds none of them.
    question: as the model is asked it, the task's instruction included.
    answers: the true ones; what several mean is up to the task's score.
    boxes_xyxy_px: what the question is about, in pixels of the picture; empty where the task does not say.
    category: for means by category; "" where there is none.
    details: further entries of the task's own files that its score needs.
    """

    id: str
    open_picture: Callable[[], Image.Image]
    question: str
    answers: tuple[str, ...]
    boxes_xyxy_px: tuple[Box, ...] = ()
    category: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
