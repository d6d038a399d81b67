"""A task of a few questions about small seeded pictures."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import exact_match
from sdrpn.evaluation.task import Task

__all__ = ["PICTURE_WH", "picture", "tiny_task"]

PICTURE_WH = (96, 64)


def picture(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (PICTURE_WH[1], PICTURE_WH[0], 3), np.uint8))


def tiny_task(samples: int = 3, *, boxes: bool = True) -> Task:
    return Task(
        name="tiny",
        samples=[
            Sample(
                id=f"q{number}",
                open_picture=partial(picture, number),
                question=f"What is in place {number}?",
                answers=("a", "b"),
                boxes_xyxy_px=((20 + number, 10, 50, 40),) if boxes else (),
                category="even" if number % 2 == 0 else "odd",
            )
            for number in range(samples)
        ],
        score=lambda answer, sample: exact_match(answer, sample.answers),
        metric="exact match",
        max_new_tokens=4,
    )
