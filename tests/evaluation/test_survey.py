"""Sinks and thresholds, from a model that looks where the test says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sdrpn.errors import BadImage, ContextTooLong
from sdrpn.evaluation.survey import HeadAttention, Survey, survey
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.labels.head_choice import HeadChoice
from sdrpn.method.roi import RoiPolicy
from tests.evaluation.tiny import tiny_task

SIDE = 12
VISION = VisionSpec(image_size_px=SIDE * 8, patch_size_px=8, width=8, layers=3, heads=2, mlp_width=8)
HEADS = HeadChoice("", ((0, 0),))
SINK = 5
Float32 = NDArray[np.float32]


def blob(row: int, column: int, width: float) -> Float32:
    """A hill of height 1: below `width` cells from its centre it is above one half."""
    y, x = np.mgrid[:SIDE, :SIDE]
    distance = np.hypot(y - row, x - column)
    hill: Float32 = np.exp(-np.log(2) * (distance / width) ** 2).astype(np.float32)
    return hill


@dataclasses.dataclass
class FakeSurveyor:
    """Its answers look at a block of cells that moves with the question, its prompts at a hill there."""

    fails: bool = False
    silent: bool = False
    asked: int = 0

    def attention(
        self, picture: Image.Image, question: str, heads: HeadChoice, rows: str, max_new_tokens: int
    ) -> HeadAttention | None:
        if self.fails:
            raise ContextTooLong("too long")
        self.asked += 1
        row, column = self._place(question)
        if rows == "answer":
            if self.silent:
                return None
            strength = np.zeros((SIDE, SIDE), np.float32)
            strength[row - 1 : row + 2, column - 1 : column + 2] = 1.0
        else:
            strength = blob(row, column, 1.5)
        strength = strength / strength.sum()
        strength.reshape(-1)[SINK] = 3.0
        return HeadAttention(strength.reshape(-1), None)

    def rpn_logits(self, picture: Image.Image, question: str, rpn: str) -> Float32:
        """A map of 0.6 on the block and 0.2 around it."""
        row, column = self._place(question)
        level = np.full((SIDE, SIDE), 0.01, np.float32)
        level[row - 3 : row + 4, column - 3 : column + 4] = 0.2
        level[row - 1 : row + 2, column - 1 : column + 2] = 0.6
        logits: Float32 = np.log(level / (1 - level))
        return logits

    def _place(self, question: str) -> tuple[int, int]:
        number = int(question.rstrip("?").split()[-1])
        return 4 + number % 4, 4 + number % 3


def looked(surveyor: FakeSurveyor, samples: int = 8) -> Survey:
    task = tiny_task(samples)
    square = [dataclasses.replace(sample, open_picture=lambda: Image.new("RGB", (96, 96))) for sample in task.samples]
    return survey(surveyor, VISION, square, HEADS, rpns=("", "b"))


def test_sinks_are_cells_that_every_question_looks_at() -> None:
    found = looked(FakeSurveyor())
    for sinks in (found.prompt_sinks, found.answer_sinks):
        assert sinks is not None
        assert np.flatnonzero(sinks[SIDE, SIDE]).tolist() == [SINK]


def test_the_rpn_gets_the_threshold_that_fits_the_labels() -> None:
    """Blurred, the block of 3 x 3 cells is above 0.35 by itself, below 0.2 the 7 x 7 around it fire too."""
    chosen = looked(FakeSurveyor()).rpn_policy("b", RoiPolicy(0.15, "bbox"))
    assert 0.3 <= chosen.threshold <= 0.45
    assert chosen.upscale == "bbox"


def test_attention_gets_the_share_that_fits_the_same_labels() -> None:
    chosen = looked(FakeSurveyor()).attention_policy(RoiPolicy(0.15))
    assert -0.75 <= chosen.threshold <= -0.35


def test_official_sink_heads_need_no_survey_of_sinks() -> None:
    class Shown(FakeSurveyor):
        def attention(
            self, picture: Image.Image, question: str, heads: HeadChoice, rows: str, max_new_tokens: int
        ) -> HeadAttention | None:
            found = super().attention(picture, question, heads, rows, max_new_tokens)
            assert found is not None
            return dataclasses.replace(found, sinks=np.arange(SIDE**2) == SINK)

    found = looked(Shown())
    assert (found.prompt_sinks, found.answer_sinks) == (None, None)
    expected = looked(FakeSurveyor()).attention_policy(RoiPolicy())
    assert found.attention_policy(RoiPolicy()) == expected


def test_nothing_to_go_by() -> None:
    with pytest.raises(ValueError, match="none of 8 questions could be asked"):
        looked(FakeSurveyor(fails=True))
    silent = looked(FakeSurveyor(silent=True))
    assert silent.answer_sinks is None
    with pytest.raises(ValueError, match="none of 8 answers gave a label to choose a threshold from"):
        silent.rpn_policy("", RoiPolicy())


def test_a_picture_that_cannot_be_read_is_left_out() -> None:
    def broken() -> Image.Image:
        raise BadImage("gone")

    samples = list(tiny_task(4).samples)
    samples[1] = dataclasses.replace(samples[1], open_picture=broken)
    assert len(survey(FakeSurveyor(), VISION, samples, HEADS).questions) == 3
