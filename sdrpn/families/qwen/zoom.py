"""From an RoI map to the one crop of these families. NumPy only.

The crop is the box around every cell above the threshold. SD-RPN inserts the cells of it that lie on the mask, Q-Zoom
all of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, RunFailed
from sdrpn.families.qwen.grid import ResizedGrid
from sdrpn.method.grids import Box
from sdrpn.method.roi import Crop, RoiDecision, blur, resize_features, roi_map
from sdrpn.method.spec import Scheme

__all__ = ["crop_keep_cells", "decide_zoom", "surrounding_box"]

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]


def decide_zoom(logits: Float32, keep: Bool, grid: ResizedGrid, threshold: float, scheme: Scheme) -> RoiDecision:
    """Choose what to look at again: nothing, or one crop.

    Args:
        logits: (h,w), before the sigmoid
        keep: (h,w), False for sinks, see `sinks.py`
        threshold: cells whose blurred score is above it fire
    Raises: RunFailed for logits that are not finite numbers.
    """
    _check_logits(logits, grid.hw)
    blurred = blur(roi_map(logits) * keep)
    fired = blurred > np.float32(threshold)
    box = surrounding_box(fired)
    if box is None:
        note = f"nothing inserted: no cell is above {threshold:.3g}, the highest is {float(blurred.max()):.3g}"
        return RoiDecision(np.empty((0, 4), np.int64), (), note, blurred)
    boxes, box_px = np.array([box], np.int64), grid.box_px_from_cells(box, slid=scheme == "q-zoom")
    size = box_px[2] - box_px[0], box_px[3] - box_px[1]
    if not grid.budget.accepts(size):
        note = f"nothing inserted: the region is {size[0]} x {size[1]} px, which is too small or too long to be resized"
        return RoiDecision(boxes, (), note, blurred)
    cells = crop_keep_cells(fired, box, grid.crop_hw(box_px)) if scheme == "sd-rpn" else None
    if cells is not None and not cells.any():
        note = "nothing inserted: no cell of the mask is left on the crop's grid"
        return RoiDecision(boxes, (), note, blurred)
    return RoiDecision(boxes, (Crop(box_px, keep_cells=cells, box_cells=box),), None, blurred)


def surrounding_box(fired: Bool) -> Box | None:
    """The tightest box of cells around all that fired in (h,w); None where none did."""
    cells_yx = np.argwhere(fired)
    if not len(cells_yx):
        return None
    (y1, x1), (y2, x2) = cells_yx.min(axis=0), cells_yx.max(axis=0) + 1
    return int(x1), int(y1), int(x2), int(y2)


def crop_keep_cells(fired: Bool, box_cells: Box, crop_hw: tuple[int, int]) -> Bool:
    """The cells of the crop's own grid that are on the mask: resized bilinearly, more than one half."""
    x1, y1, x2, y2 = box_cells
    resized = resize_features(fired[y1:y2, x1:x2, None].astype(np.float32), crop_hw)
    kept: Bool = resized[..., 0] > 0.5
    return kept


def _check_logits(logits: Float32, hw: tuple[int, int]) -> None:
    if logits.shape != hw:
        raise BadInput(f"RoI logits have the shape {logits.shape}; expected {hw}, the grid over the image")
    bad = int(np.count_nonzero(~np.isfinite(logits)))
    if bad:
        raise RunFailed(f"{bad} of {logits.size} RoI logits are NaN or infinite; expected finite numbers")
