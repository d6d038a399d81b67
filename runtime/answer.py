"""An answer: text and tokens, where the model looked, and timings. Data only."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput, SdrpnError
from sdrpn.images.picture_output import require_picture_name
from sdrpn.method.roi import RoiDecision
from sdrpn.runtime.drawing import draw_regions, png_bytes, save_overlay
from sdrpn.runtime.pictures.picture import PictureSource
from sdrpn.runtime.pictures.reference import PictureReference
from sdrpn.runtime.regions import DroppedRegion

__all__ = ["Answer", "Stopwatch", "Timings", "TokenCounts", "Trace"]

FloatArray = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Timings:
    """Seconds of every stage; 0 for a stage that was not needed."""

    preprocess_s: float = 0.0  # open, upright, pad, resize, normalise
    vision_s: float = 0.0
    trunk_s: float = 0.0
    gate_s: float = 0.0  # of a model with a gate: whether to look again
    rpn_s: float = 0.0
    roi_decode_s: float = 0.0  # map to boxes
    crop_preprocess_s: float = 0.0
    crop_vision_s: float = 0.0
    crop_trunk_s: float = 0.0  # trunk over RoI tokens and question
    tail_prefill_s: float = 0.0
    decode_s: tuple[float, ...] = ()  # one entry per decode step; the first token comes from the prefill
    total_s: float = 0.0  # including the time waiting for other answers
    waited_s: float = 0.0  # for a slot
    first_token_s: float = 0.0  # from the beginning to the first token
    longest_wait_s: float = 0.0  # between two tokens

    @property
    def decode_per_token_s(self) -> float:
        """Median of the decode steps; 0 if there are none."""
        return float(np.median(self.decode_s)) if self.decode_s else 0.0

    @property
    def llm_prefill_s(self) -> float:
        """Trunk, gate, RPN and tail before the first token, without vision."""
        return self.trunk_s + self.gate_s + self.rpn_s + self.crop_trunk_s + self.tail_prefill_s

    @property
    def stages_s(self) -> float:
        """The sum of all stages."""
        stages = (self.preprocess_s, self.vision_s, self.roi_decode_s, self.crop_preprocess_s, self.crop_vision_s)
        return sum(stages) + self.llm_prefill_s + sum(self.decode_s)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"decode_s": list(self.decode_s)}


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of an answer, and the rows that each graph computed for it."""

    prompt: int  # without RoI tokens, image included
    image: int
    roi: int
    generated: int
    trunk_rows: int
    rpn_rows: int
    tail_rows: int
    images_encoded: int
    cached: int = 0  # rows of the first pass that the trunk had computed before
    gate_rows: int = 0
    pruned: int = 0  # image tokens that the second pass went without


@dataclass(frozen=True)
class Trace:
    """Intermediate results, kept on request."""

    roi_logits: FloatArray | None  # (h, w) before the sigmoid; None also where the gate ended it
    decision: RoiDecision | None
    first_logits: FloatArray  # (V,) of the first generated token
    step_logits: FloatArray  # (n, V), one row per chosen token, including a stop token
    gate_score: float | None = None  # None: there is no gate, or it was not asked
    kept_source: npt.NDArray[np.bool_] | None = None  # (h*w,) image tokens that the second pass kept; None: all


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one question.

    `roi_map` is (h, w) in 0..1 (sigmoid of the RoI logits), None for one look. `boxes_xyxy_px` are the crops, in
    pixels of the upright image; `dropped` are regions that fired and were left out, and why. `text` is empty if the
    bundle has no tokenizer. Answers are equal if text, tokens, boxes, map and note are, whatever they cost.
    """

    text: str
    token_ids: tuple[int, ...]  # without the stop token
    finish_reason: Literal["stop", "length"]
    boxes_xyxy_px: tuple[Box, ...]
    roi_map: FloatArray | None
    roi_token_count: int
    note: str | None  # a remark for the user, such as why there was no crop
    timings: Timings
    tokens: TokenCounts
    trace: Trace | None = field(default=None, repr=False)
    dropped: tuple[DroppedRegion, ...] = ()
    picture: PictureReference | None = field(default=None, repr=False)  # a file, or what is still in memory elsewhere
    gate_score: float | None = None  # how likely the first look is not enough; None: no gate was asked

    def overlay(self, image: PictureSource | None = None) -> Image.Image:
        """The picture under the map and the boxes, with the crops beside it and what was dropped.

        Args: image: the picture once more, where it was an array or a PIL image that nobody else keeps
        Raises: BadInput where the picture is gone, or another one is passed
        """
        if self.picture is None:
            raise BadInput("this answer knows no picture; draw with sdrpn.method.overlay.draw_overlay")
        picture = self.picture.image(image)
        return draw_regions(picture, self.roi_map, self.boxes_xyxy_px, self.dropped, self.picture.fit)

    def save_overlay(self, path: str | os.PathLike[str], image: PictureSource | None = None) -> None:
        """Write `overlay` as .png, .jpg or .webp. Raises BadInput for another ending or a folder that is not there."""
        require_picture_name(path)
        save_overlay(self.overlay(image), path)

    def to_dict(self, *, with_map: bool = True) -> dict[str, Any]:
        """All but trace and picture, as JSON holds it. `with_map`: also the map, as a list of rows, or None."""
        found: dict[str, Any] = {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "boxes_xyxy_px": [list(box) for box in self.boxes_xyxy_px],
            "dropped": [region.to_dict() for region in self.dropped],
            "roi_token_count": self.roi_token_count,
            "note": self.note,
            "timings": self.timings.to_dict(),
            "tokens": asdict(self.tokens),
        }
        return found | {"roi_map": None if self.roi_map is None else self.roi_map.tolist()} if with_map else found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Answer):
            return NotImplemented
        return self._said == other._said and _same_array(self.roi_map, other.roi_map)

    def __hash__(self) -> int:
        return hash(self._said)

    def __repr__(self) -> str:
        boxes = "".join(f", box {box}" for box in self.boxes_xyxy_px)
        note = f", note={self.note!r}" if self.note else ""
        ended = "" if self.finish_reason == "stop" else ", cut off"
        return f"Answer({self.text!r}{ended}{boxes}{note}, {self.timings.total_s * 1000:.0f} ms)"

    def _repr_png_(self) -> bytes | None:
        """The overlay in notebooks; None where the picture is gone."""
        try:
            return png_bytes(self.overlay())
        except SdrpnError:
            return None

    @property
    def _said(self) -> tuple[object, ...]:
        found = (self.text, self.token_ids, self.finish_reason, self.boxes_xyxy_px, self.dropped)
        return (*found, self.roi_token_count, self.note)


def _same_array(mine: FloatArray | None, others: FloatArray | None) -> bool:
    if mine is None or others is None:
        return mine is others
    return np.array_equal(mine, others)


class Stopwatch:
    """Collects the seconds of named stages."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}
        self._decode_s: list[float] = []
        self._others_s = self._waited_s = self._first_token_s = self._longest_wait_s = 0.0
        self._last_token: float | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start, others_s = time.perf_counter(), self._others_s
        try:
            yield
        finally:
            seconds = time.perf_counter() - start - (self._others_s - others_s)
            self._stages[name] = self._stages.get(name, 0.0) + seconds

    def others(self, seconds: float) -> None:
        """So much of the stage that runs was spent on others."""
        self._others_s += seconds

    def begin(self) -> None:
        """The wait for a slot is over; of several looks that share the stopwatch, the first one's."""
        self._waited_s = self._waited_s or time.perf_counter() - self._start - sum(self._stages.values())

    def token(self) -> None:
        """A token was chosen."""
        now = time.perf_counter()
        if self._last_token is None:
            self._first_token_s = now - self._start
        else:
            self._longest_wait_s = max(self._longest_wait_s, now - self._last_token)
        self._last_token = now

    def decode_step(self, seconds: float) -> None:
        """Append one decode step."""
        self._decode_s.append(seconds)

    def timings(self) -> Timings:
        """All stages so far; the total is the time since the stopwatch was created."""
        stages = {f"{name}_s": seconds for name, seconds in self._stages.items()}
        return Timings(
            **stages,
            decode_s=tuple(self._decode_s),
            total_s=time.perf_counter() - self._start,
            waited_s=self._waited_s,
            first_token_s=self._first_token_s,
            longest_wait_s=self._longest_wait_s,
        )
