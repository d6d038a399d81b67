"""The JSON of replies: regions, maps and times as they are documented, and OpenAI's completions around them."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.method.grids import ImageGrid
from sdrpn.runtime.answer import Answer, Timings
from sdrpn.runtime.look import Look
from sdrpn.runtime.regions import DroppedRegion, Region, scored_regions
from sdrpn.runtime.server.requests import MapForm

__all__ = ["Completion", "answer_extras", "look_json", "map_json", "stages_json"]

FloatArray = npt.NDArray[np.float32]
_NUMBERS: dict[MapForm, str] = {"float16": "<f2", "float32": "<f4"}


def map_json(roi_map: FloatArray | None, form: MapForm) -> dict[str, Any] | None:
    """A map (h, w) in 0..1: little-endian float16 or float32 in rows, or an 8-bit grey PNG; in base64."""
    if roi_map is None or form == "none":
        return None
    if form in _NUMBERS:
        data = np.ascontiguousarray(roi_map, _NUMBERS[form]).tobytes()
    else:
        file = io.BytesIO()
        Image.fromarray(np.rint(roi_map * 255).clip(0, 255).astype(np.uint8)).save(file, "PNG")
        data = file.getvalue()
    return {"encoding": form, "shape": list(roi_map.shape), "data": base64.b64encode(data).decode()}


def stages_json(timings: Timings) -> dict[str, float]:
    """Seconds of every stage; `decode_s` is the sum of the steps."""
    found = {name: round(value, 6) for name, value in vars(timings).items() if name != "decode_s"}
    return found | {"decode_s": round(sum(timings.decode_s), 6)}


def look_json(look: Look, form: MapForm, gate_threshold: float | None) -> dict[str, Any]:
    """What one question found. `gate_threshold`: below it an answer would look once."""
    looks_again = gate_threshold is None or look.gate_score is None or look.gate_score >= gate_threshold
    return {
        "question": look.question,
        **_regions_json(look.boxes, look.dropped),
        "note": look.note,
        "gate": gate_json(look.gate_score, looks_again),
        "map": map_json(look.roi_map, form),
        "sinks": [] if look.kept_cells is None else np.flatnonzero(~look.kept_cells).tolist(),
    }


def gate_json(score: float | None, looks_again: bool) -> dict[str, Any] | None:
    """The gate's decision; None where no gate was asked."""
    return None if score is None else {"score": score, "looks_again": looks_again}


def answer_extras(answer: Answer, grid: ImageGrid | None, fit: str, form: MapForm) -> dict[str, Any]:
    """The entry `sdrpn` of a completion: where the model looked, and what it cost.

    grid: over the picture; None where there is none, or several: nothing is looked at again then
    """
    boxes: tuple[Region, ...] = ()
    if answer.roi_map is not None and grid is not None:
        boxes = scored_regions(answer.boxes_xyxy_px, answer.roi_map, grid)
    return {
        "image_wh": None if grid is None else list(grid.image_wh),
        "fit": fit,
        **_regions_json(boxes, answer.dropped),
        "note": answer.note,
        "gate": gate_json(answer.gate_score, answer.roi_map is not None),
        "map": map_json(answer.roi_map, form),
        "stages": stages_json(answer.timings),
        "roi_tokens": answer.roi_token_count,
    }


@dataclass
class Completion:
    """An answer as OpenAI's clients read it, whole or in chunks."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    extras: dict[str, Any] | None = None

    def finish(self, answer: Answer, extras: dict[str, Any]) -> None:
        """The answer is complete. Tokens are counted as OpenAI does: picture and crops belong to the prompt."""
        prompt, completion = answer.tokens.prompt + answer.tokens.roi, answer.tokens.generated
        self.finish_reason, self.extras = answer.finish_reason, extras
        self.usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": answer.tokens.cached},
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole reply."""
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": self.text, "refusal": None},
                    "finish_reason": self.finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": self.usage,
            "sdrpn": self.extras,
        }

    def chunk(self, delta: dict[str, Any], *, with_usage: bool) -> dict[str, Any]:
        """A piece of it; the last one has the reason of the end, and the extras."""
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else self.finish_reason, "logprobs": None}
        found = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if not delta:
            found["sdrpn"] = self.extras
        return found | {"usage": None} if with_usage else found

    def usage_chunk(self) -> dict[str, Any]:
        """What follows the last piece where usage was asked for."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def _regions_json(boxes: Iterable[Region], dropped: Iterable[DroppedRegion]) -> dict[str, Any]:
    return {"boxes": [each.to_dict() for each in boxes], "dropped": [each.to_dict() for each in dropped]}
