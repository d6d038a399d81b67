"""An answer: text and tokens, where the model looked, and timings. Data only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sdrpn.method.roi import RoiDecision

__all__ = ["Answer", "Stopwatch", "Timings", "TokenCounts", "Trace"]

FloatArray = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Timings:
    """Seconds of every stage; 0 for a stage that was not needed."""

    preprocess_s: float = 0.0  # open, upright, pad, resize, normalise
    vision_s: float = 0.0
    trunk_s: float = 0.0
    rpn_s: float = 0.0
    roi_decode_s: float = 0.0  # map to boxes
    crop_preprocess_s: float = 0.0
    crop_vision_s: float = 0.0
    crop_trunk_s: float = 0.0  # trunk over RoI tokens and question
    tail_prefill_s: float = 0.0
    decode_s: tuple[float, ...] = ()  # one entry per decode step; the first token comes from the prefill
    total_s: float = 0.0  # including the time waiting for other answers

    @property
    def decode_per_token_s(self) -> float:
        """Median of the decode steps; 0 if there are none."""
        return float(np.median(self.decode_s)) if self.decode_s else 0.0

    @property
    def llm_prefill_s(self) -> float:
        """Trunk, RPN and tail before the first token, without vision."""
        return self.trunk_s + self.rpn_s + self.crop_trunk_s + self.tail_prefill_s

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


@dataclass(frozen=True)
class Trace:
    """Intermediate results, kept on request."""

    roi_logits: FloatArray | None  # (G, G) before the sigmoid
    decision: RoiDecision | None
    first_logits: FloatArray  # (V,) of the first generated token
    step_logits: FloatArray  # (n, V), one row per chosen token, including a stop token


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    `roi_map` is (G, G) in 0..1 (sigmoid of the RoI logits), None for plain LLaVA. `boxes_xyxy_px` are the crops, in
    pixels of the upright image. `text` is empty if the bundle has no tokenizer.
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


class Stopwatch:
    """Collects the seconds of named stages."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._stages: dict[str, float] = {}
        self._decode_s: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + time.perf_counter() - start

    def decode_step(self, seconds: float) -> None:
        """Append one decode step."""
        self._decode_s.append(seconds)

    def timings(self) -> Timings:
        """All stages so far; the total is the time since the stopwatch was created."""
        stages = {f"{name}_s": seconds for name, seconds in self._stages.items()}
        return Timings(**stages, decode_s=tuple(self._decode_s), total_s=time.perf_counter() - self._start)
