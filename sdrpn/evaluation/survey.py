"""Find a model's attention sinks and thresholds from questions, without reading their answers. NumPy only.

The threshold is chosen as in the training of an RPN: the crop should have the highest overlap with the box of the
label, which comes from the model's own attention. RPN and attention are compared with the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.evaluation.region import region_quality
from sdrpn.evaluation.sample import Sample
from sdrpn.families.registry import family_named
from sdrpn.host.progress import Advance, unseen
from sdrpn.labels.denoise import Sinks, denoise, rule_named, sinks_by_grid, sinks_on
from sdrpn.labels.head_choice import HeadChoice
from sdrpn.method.grids import Box, ImageGrid
from sdrpn.method.roi import RoiPolicy, decide_crops
from sdrpn.method.spec import Vision

if TYPE_CHECKING:
    from sdrpn.labels.attention import Rows  # imports PyTorch

__all__ = ["THRESHOLDS", "HeadAttention", "Survey", "Surveyor", "survey"]

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True, eq=False)
class HeadAttention:
    """The attention of one question. grounding: (C,), mean of the heads. sinks: (C,), from sink heads, or None."""

    grounding: Float32
    sinks: Bool | None


class Surveyor(Protocol):
    """A model that gives access to its attention."""

    def attention(
        self, picture: Image.Image, question: str, heads: HeadChoice, rows: Rows, max_new_tokens: int
    ) -> HeadAttention | None:
        """The attention of some rows to the image; None where the answer has no such row."""

    def rpn_logits(self, picture: Image.Image, question: str, rpn: str) -> Float32:
        """The logits (h,w) of one of its RPNs."""


@dataclass(frozen=True, eq=False)
class _SurveyQuestion:
    """The results of one question. rpns: name -> logits (h,w)."""

    image_wh: tuple[int, int]
    prompt: HeadAttention
    answer: HeadAttention | None
    rpns: dict[str, Float32]


@dataclass(frozen=True, eq=False)
class Survey:
    """The results of all questions: sinks of the last prompt token and of answers; None where sink heads give them.

    Sinks are those of a grid, in every question about a picture that has it.
    """

    vision: Vision
    prompt_sinks: Sinks | None
    answer_sinks: Sinks | None
    questions: tuple[_SurveyQuestion, ...]

    def attention_policy(self, policy: RoiPolicy) -> RoiPolicy:
        """The policy with the best threshold relative to the strongest cell's attention."""
        maps = [
            _without(question.prompt, self.prompt_sinks, self._grid(question.image_wh).hw)
            for question in self.questions
        ]
        return self._best(maps, [replace(policy, threshold=-share) for share in THRESHOLDS])

    def rpn_policy(self, rpn: str, policy: RoiPolicy) -> RoiPolicy:
        """The policy with the best threshold for an RPN."""
        maps = [question.rpns[rpn] for question in self.questions]
        return self._best(maps, [replace(policy, threshold=threshold) for threshold in THRESHOLDS])

    def _best(self, maps: Sequence[Float32], policies: Sequence[RoiPolicy]) -> RoiPolicy:
        """The policy with the highest mean overlap. Raises BadInput where no question has a label."""
        pairs = [
            (logits, question.image_wh, box)
            for logits, question in zip(maps, self.questions, strict=True)
            if (box := self._label_px(question)) is not None
        ]
        if not pairs:
            raise BadInput(f"none of {len(maps)} answers gave a label to choose a threshold from; give one as a number")
        return max(policies, key=lambda policy: float(np.mean([self._overlap(policy, *pair) for pair in pairs])))

    def _label_px(self, question: _SurveyQuestion) -> Box | None:
        """The box of the label that training would use."""
        if question.answer is None:
            return None
        grid = self._grid(question.image_wh)
        sinks = _sinks(question.answer, self.answer_sinks, grid.hw)
        rule = rule_named(family_named(self.vision.family).label_rule)
        labels = denoise(question.answer.grounding.reshape(grid.hw), sinks.reshape(grid.hw), rule)
        if not labels.usable or labels.box_cells is None:
            return None
        return grid.box_px_from_cells(labels.box_cells)

    def _overlap(self, policy: RoiPolicy, logits: Float32, image_wh: tuple[int, int], box: Box) -> float:
        crops = decide_crops(logits, self._grid(image_wh), policy).crops
        return region_quality(crops, [box], None).iou

    def _grid(self, image_wh: tuple[int, int]) -> ImageGrid:
        return self.vision.grid(image_wh)


def survey(
    surveyor: Surveyor,
    vision: Vision,
    samples: Sequence[Sample],
    heads: HeadChoice,
    *,
    rpns: Sequence[str] = (),
    max_new_tokens: int = 128,  # the official code's limit for labels
    progress: Advance = unseen,
) -> Survey:
    """Ask all questions. rpns: those that need a threshold. Raises BadInput where no question could be asked."""
    questions = []
    for done, sample in enumerate(samples, start=1):
        try:
            questions.append(_ask(surveyor, sample, heads, rpns, max_new_tokens))
        except (BadImage, ContextTooLong):  # reported later by the run itself
            continue
        progress(done, len(samples))
    if not questions:
        raise BadInput(
            f"none of {len(samples)} questions could be asked to find where the model attends; check the data"
        )
    grids = [vision.grid(question.image_wh).hw for question in questions]
    prompts = _usual([(hw, question.prompt) for hw, question in zip(grids, questions, strict=True)])
    answers = _usual(
        [(hw, asked.answer) for hw, asked in zip(grids, questions, strict=True) if asked.answer is not None]
    )
    return Survey(vision, prompts, answers, tuple(questions))


def _ask(
    surveyor: Surveyor, sample: Sample, heads: HeadChoice, rpns: Sequence[str], max_new_tokens: int
) -> _SurveyQuestion:
    picture, question = sample.open_picture(), sample.question
    prompt = surveyor.attention(picture, question, heads, "last-prompt", 1)
    assert prompt is not None  # every prompt has a last token
    answer = surveyor.attention(picture, question, heads, "answer", max_new_tokens)
    maps = {name: surveyor.rpn_logits(picture, question, name) for name in rpns}
    return _SurveyQuestion(picture.size, prompt, answer, maps)


def _usual(attention: Sequence[tuple[tuple[int, int], HeadAttention]]) -> Sinks | None:
    """The usual sinks; None where sink heads give them for every question, or no attention is available."""
    if not attention or attention[0][1].sinks is not None:
        return None
    return sinks_by_grid((hw, question.grounding) for hw, question in attention)


def _sinks(attention: HeadAttention, usual: Sinks | None, hw: tuple[int, int]) -> Bool:
    if attention.sinks is not None:
        return attention.sinks
    assert usual is not None
    return sinks_on(usual, hw)


def _without(attention: HeadAttention, usual: Sinks | None, hw: tuple[int, int]) -> Float32:
    """(h,w)."""
    return np.where(_sinks(attention, usual, hw), np.float32(0), attention.grounding).reshape(hw)
