"""The JSON of replies: regions, maps and times as they are documented, and OpenAI's completions around them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.method.grids import ImageGrid
from sdrpn.runtime.answer import Answer, Timings
from sdrpn.runtime.look import Look
from sdrpn.runtime.regions import DroppedRegion, Region, scored_regions
from sdrpn.runtime.server.requests import MapForm

__all__ = ["answer_extras", "look_json", "map_json", "stages_json", "usage_json"]

FloatArray = npt.NDArray[np.float32]


def map_json(roi_map: FloatArray | None, form: MapForm) -> dict[str, Any] | None:
    """A map (h, w) in 0..1: little-endian float16 in rows, or an 8-bit grey PNG; both in base64."""
    if roi_map is None or form == "none":
        return None
    if form == "float16":
        data = np.ascontiguousarray(roi_map, "<f2").tobytes()
    else:
        file = io.BytesIO()
        Image.fromarray(np.rint(roi_map * 255).clip(0, 255).astype(np.uint8)).save(file, "PNG")
        data = file.getvalue()
    return {"encoding": form, "shape": list(roi_map.shape), "data": base64.b64encode(data).decode()}


def stages_json(timings: Timings) -> dict[str, float]:
    """Seconds of every stage; `decode_s` is the sum of the steps."""
    found = {name: round(value, 6) for name, value in vars(timings).items() if name != "decode_s"}
    return found | {"decode_s": round(sum(timings.decode_s), 6)}


def look_json(look: Look, form: MapForm) -> dict[str, Any]:
    """What one question found."""
    return {
        "question": look.question,
        **_regions_json(look.boxes, look.dropped),
        "note": look.note,
        "gate": None,
        "map": map_json(look.roi_map, form),
    }


def answer_extras(answer: Answer, grid: ImageGrid, fit: str, form: MapForm) -> dict[str, Any]:
    """The entry `sdrpn` of a completion: where the model looked, and what it cost."""
    boxes: tuple[Region, ...] = ()
    if answer.roi_map is not None:
        boxes = scored_regions(answer.boxes_xyxy_px, answer.roi_map, grid)
    return {
        "image_wh": list(grid.image_wh),
        "fit": fit,
        **_regions_json(boxes, answer.dropped),
        "note": answer.note,
        "gate": None,
        "map": map_json(answer.roi_map, form),
        "stages": stages_json(answer.timings),
        "roi_tokens": answer.roi_token_count,
    }


def usage_json(answer: Answer) -> dict[str, Any]:
    """Tokens, as OpenAI counts them: the picture's and the crops' belong to the prompt."""
    prompt, completion = answer.tokens.prompt + answer.tokens.roi, answer.tokens.generated
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": answer.tokens.cached},
    }


def _regions_json(boxes: Iterable[Region], dropped: Iterable[DroppedRegion]) -> dict[str, Any]:
    return {"boxes": [each.to_dict() for each in boxes], "dropped": [each.to_dict() for each in dropped]}
