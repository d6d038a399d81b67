"""Cells that are looked at whatever is asked (attention sinks) and so are never zoomed on: two rules. NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdrpn.method.roi import roi_map
from sdrpn.method.spec import Scheme

__all__ = ["SINK_SCORE", "border_kept", "not_sinks"]

SINK_SCORE = 0.75  # Q-Zoom on Qwen3-VL: what the first token looks at this much is a sink
_BORDER_ABOVE_CELLS: dict[Scheme, int] = {"q-zoom": 256, "sd-rpn": 768}
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


def border_kept(hw: tuple[int, int], scheme: Scheme) -> Bool:
    """(h,w) Qwen2.5-VL: of a large map, a quarter of the first column and of the first row is left out.

    Both begin at the upper left corner.
    """
    rows, columns = hw
    kept = np.ones(hw, np.bool_)
    if rows * columns > _BORDER_ABOVE_CELLS[scheme]:
        least = 1 if scheme == "q-zoom" else 0
        kept[: max(least, rows // 4), 0] = False
        kept[0, : max(least, columns // 4)] = False
    return kept


def not_sinks(sink_logits: Float32) -> Bool:
    """(h,w) Qwen3-VL: cells that the first token's first query head does not look at; any size of map.

    sink_logits: (h,w), before the sigmoid, mean over the key heads
    """
    kept: Bool = roi_map(sink_logits) < np.float32(SINK_SCORE)
    return kept
