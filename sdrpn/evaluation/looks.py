"""Kinds of second pass, as data: where the crops come from. Knows no model.

A method (sdrpn.evaluation.methods) asks an answerer for one of these; which of them an answerer supports depends on
its library, since only PyTorch gives access to attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn.labels.denoise import Sinks
from sdrpn.labels.head_choice import HeadChoice
from sdrpn.method.grids import centre_px
from sdrpn.method.roi import Crop, RoiDecision, RoiPolicy
from sdrpn.method.spec import ModelSpec

__all__ = [
    "Answered",
    "Answerer",
    "AttentionLook",
    "GivenLook",
    "Judged",
    "Look",
    "RpnLook",
    "TeacherLook",
    "VicropLook",
    "confidence_of",
    "given_note",
    "map_over_image",
    "peak_xy_px",
    "window_xy_px",
]

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class GivenLook:
    """Given crops, independent of the model.

    pixels: a picture of the shown one's size that the crops are cut from; None: the shown one
    """

    crops: tuple[Crop, ...]
    pixels: Image.Image | None = None


@dataclass(frozen=True)
class RpnLook:
    """The crops that an RPN proposes. `rpn`: its name; "" is the model's own."""

    policy: RoiPolicy
    rpn: str = ""


@dataclass(frozen=True, eq=False)
class AttentionLook:
    """Crops where the prompt's last token attends, from the first layers only; the policy is relative to the peak.

    sinks: cells that are ignored, by grid; None: taken from the sink heads of `heads`.
    """

    policy: RoiPolicy
    heads: HeadChoice
    sinks: Sinks | None


@dataclass(frozen=True, eq=False)
class TeacherLook:
    """Crops from the label that training would use: the cleaned attention of the model's own answer."""

    policy: RoiPolicy
    heads: HeadChoice
    sinks: Sinks | None


@dataclass(frozen=True)
class VicropLook:
    """ViCrop: attention for the question relative to that for a general question, and ViCrop's own window rule."""

    layer: int
    general_question: str


Look: TypeAlias = GivenLook | RpnLook | AttentionLook | TeacherLook | VicropLook


@dataclass(frozen=True)
class Judged:
    """What may decide whether a question is looked at twice, and how long it took.

    confidence: the strongest cell that the threshold was applied to; None where the map was not computed, or its scale
        differs from question to question. map_s: seconds of the RPN and of choosing crops.
    gate_score: None where there is no gate, or it was not asked. gate_s: its seconds.
    """

    confidence: float | None = None
    map_s: float = 0.0
    gate_score: float | None = None
    gate_s: float = 0.0


@dataclass(frozen=True)
class Answered:
    """An answer, and the crops that it is based on.

    crops: the inserted crops, or those that would have been. peak_xy_px: the centre of the map's strongest cell or of
    the chosen window; None where nothing was chosen. seconds: from the opened picture to the text. note: why there is
    no crop, or only a part of it. map_over_image: (h,w) in 0..1, the map that the crops were chosen from; None where
    they were not chosen from a map. judged: None where the model was not asked whether or where to look again.
    """

    text: str
    crops: tuple[Crop, ...]
    peak_xy_px: tuple[float, float] | None
    roi_tokens: int
    seconds: float
    note: str | None = None
    map_over_image: Float32 | None = None
    judged: Judged | None = None


class Answerer(Protocol):
    """A model that answers questions, on some library."""

    @property
    def spec(self) -> ModelSpec:
        """The model."""

    @property
    def rpns(self) -> tuple[str, ...]:
        """The names of its RPNs."""

    @property
    def looks(self) -> frozenset[type[Any]]:
        """The kinds of `Look` that it supports."""

    def answer(self, picture: Image.Image, question: str, look: Look | None, max_new_tokens: int) -> Answered:
        """Answer greedily; `look` None: with one look. Nothing is reused from an earlier question.

        With `max_new_tokens` 0 it only chooses crops: the text is empty, and no answer is computed.
        Raises ContextTooLong and other BadInput.
        """

    def decide(self, picture: Image.Image, question: str, look: RpnLook) -> RoiDecision:
        """The crops that an RPN proposes."""


def peak_xy_px(decision: RoiDecision, image_wh: tuple[int, int], spec: ModelSpec) -> tuple[float, float]:
    """The centre of the strongest cell, in source pixels; it may be in the padding."""
    row, column = np.unravel_index(int(decision.blurred_map.argmax()), decision.blurred_map.shape)
    return centre_px(spec.vision.grid(image_wh), int(row), int(column))


def map_over_image(decision: RoiDecision, policy: RoiPolicy) -> Float32:
    """(h,w) in 0..1: the map that the threshold was applied to, relative to its peak where the threshold is."""
    strength = decision.blurred_map
    if policy.threshold < 0:
        strength = strength / max(float(strength.max()), float(np.finfo(np.float32).tiny))
    return np.clip(strength, 0, 1).astype(np.float32)


def confidence_of(decision: RoiDecision, policy: RoiPolicy) -> float | None:
    """The strongest cell that the threshold was applied to; None for a threshold that is relative to it."""
    return float(decision.blurred_map.max()) if policy.threshold > 0 else None


def given_note(crops: Sequence[Crop]) -> str | None:
    """Why nothing is inserted although crops are given by the method; None where there are crops."""
    return None if crops else "nothing inserted: the method names no part of this picture"


def window_xy_px(crops: Sequence[Crop]) -> tuple[float, float] | None:
    """The centre of the chosen crop; None where there are none or several."""
    if len(crops) != 1:
        return None
    x1, y1, x2, y2 = crops[0].box_xyxy_px
    return (x1 + x2) / 2, (y1 + y2) / 2
