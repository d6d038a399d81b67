"""What the tools return, as clients read it: plain dataclasses, from which the JSON schemas of the tools are made."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Answered", "Box", "CroppedPart", "FoundRegion", "IgnoredRegion", "LookedAt", "QuestionLook"]

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the upright picture, upper bounds exclusive


@dataclass(frozen=True)
class FoundRegion:
    """A part of the picture that the question is about."""

    box_xyxy_px: Box
    score_max: float  # highest value of the map under the box, 0..1
    score_mean: float


@dataclass(frozen=True)
class IgnoredRegion:
    """A part of the map that stood out and was left out."""

    box_xyxy_px: Box | None  # None: it lies in the padding around the picture
    reason: str


@dataclass(frozen=True)
class QuestionLook:
    """Where one question points."""

    question: str
    regions: tuple[FoundRegion, ...]  # best first is not promised: the order is that of an answer's crops
    ignored: tuple[IgnoredRegion, ...]
    note: str | None  # why there is no region, or one was left out


@dataclass(frozen=True)
class LookedAt:
    """The result of `look`."""

    image: str
    image_wh: tuple[int, int]  # pixels of the upright picture
    looks: tuple[QuestionLook, ...]
    seconds: float


@dataclass(frozen=True)
class Answered:
    """The result of `ask`. `boxes_xyxy_px`: the regions that the model looked at again."""

    image: str
    image_wh: tuple[int, int]
    text: str
    finish_reason: str  # "stop", or "length" where max_new_tokens cut it off
    boxes_xyxy_px: tuple[Box, ...]
    note: str | None
    seconds: float


@dataclass(frozen=True)
class CroppedPart:
    """The result of `crop`. `box_xyxy_px`: the part that the returned picture shows, which may be scaled down."""

    image: str
    image_wh: tuple[int, int]
    box_xyxy_px: Box
    returned_wh: tuple[int, int]
