"""Turn an RoI map into the crops of the second look. NumPy only; knows nothing about models or image files.

Follows the official SD-RPN implementation to the last rounding, except for its clear errors:
a crop that shows only padding is dropped, a box always contains the cells that fired, and a region that is too
large does not drag the crop of its smaller neighbours over the whole image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.field_types import require_type
from sdrpn.method.grids import Box, ImageGrid, cell_count

__all__ = [
    "MAX_BBOX_CROPS",
    "Crop",
    "Decide",
    "LeftOut",
    "PolicyDecide",
    "RoiDecision",
    "RoiPolicy",
    "blur",
    "decide_by_policy",
    "decide_cells",
    "decide_crops",
    "find_components",
    "resize_features",
    "roi_logits_from_scores",
    "roi_map",
    "without_sinks",
]

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]

MAX_BBOX_CROPS = 2  # the official evaluation's limit: 1152 tokens
EXPANDED_BELOW_CELLS = 4  # components smaller than this get a box of at least 3 x 3 cells
MIN_BOX_SIDE_CELLS = 3


@dataclass(frozen=True)
class RoiPolicy:
    """How a map becomes crops.

    threshold: cells above it form regions; negative: |threshold| times the maximum of the blurred logits (for
    `loss="mse"`). upscale: "bbox" inserts one or two whole boxes; "mask" does so for one box, and otherwise inserts one
    crop around all regions, of which only the cells above the threshold are kept. max_ratio: only with "bbox": most
    tokens per side for a cell of the region; None: all cells that a crop is encoded to. min_cells: regions with fewer
    cells are ignored. max_share: regions of more than this share of the grid are ignored. max_cells: the same limit as
    a number of cells, which is specific to one grid. Deprecated. gate_threshold: of a model with a gate: a score below
    it ends with the first look; below 0: always look again; above 1: never; None: the model's own.
    """

    threshold: float = 0.15  # the official evaluation's value for TextVQA, ChartQA, InfoVQA and POPE
    upscale: Literal["mask", "bbox"] = "mask"
    max_ratio: float | None = None
    min_cells: int = 2
    max_share: float = 0.390625  # the official evaluation's 225 cells of 24 x 24
    max_cells: int | None = None
    gate_threshold: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.threshold) or not -1 < self.threshold < 1 or self.threshold == 0:
            raise BadInput(
                f"threshold is {self.threshold!r}; expected a number between 0 and 1, or between -1 and 0 for a share "
                "of the highest logit",
                options=("threshold",),
            )
        if self.upscale not in ("mask", "bbox"):
            raise BadInput(f'upscale is {self.upscale!r}; expected "mask" or "bbox"', options=("upscale",))
        if self.max_ratio is not None:
            if self.upscale != "bbox":
                raise BadInput(
                    f'max_ratio ({self.max_ratio!r}) needs upscale="bbox"; got upscale={self.upscale!r}',
                    options=("max_ratio", "upscale bbox"),
                )
            if not _is_number(self.max_ratio) or not self.max_ratio > 0:
                raise BadInput(
                    f"max_ratio is {self.max_ratio!r}; expected a number above 0, or none", options=("max_ratio",)
                )
        _require_whole("min_cells", self.min_cells)
        if not _is_number(self.max_share) or not 0 < self.max_share <= 1:
            raise BadInput(
                f"max_share is {self.max_share!r}; expected a number above 0, at most 1", options=("max_share",)
            )
        if self.max_cells is not None:
            self._check_max_cells(self.max_cells)
        if self.gate_threshold is not None and not _is_number(self.gate_threshold):
            raise BadInput(
                f"gate_threshold is {self.gate_threshold!r}; expected a number between 0 and 1, below 0 to look again "
                "always, above 1 for never, or none for the model's own",
                options=("gate_threshold",),
            )

    def _check_max_cells(self, max_cells: int) -> None:
        _require_whole("max_cells", max_cells)
        if max_cells < self.min_cells:
            raise BadInput(f"max_cells ({max_cells}) is below min_cells ({self.min_cells}): no region could pass")
        warnings.warn(
            f"max_cells ({max_cells}) of RoiPolicy goes with the next version: pass max_share, the share of the grid",
            DeprecationWarning,
            stacklevel=4,
        )

    def most_cells(self, hw: tuple[int, int]) -> int:
        """The largest region of a grid that is not ignored, in cells."""
        return math.floor(self.max_share * cell_count(hw)) if self.max_cells is None else self.max_cells


@dataclass(frozen=True)
class Crop:
    """A part of the image to encode again. With neither `keep_cells` nor `grid_hw` all its tokens are inserted."""

    box_xyxy_px: Box
    keep_cells: Bool | None = None  # (h, w): the cells of the crop's own feature grid that are inserted, row-major
    grid_hw: tuple[int, int] | None = None  # the projected features are resized to this grid
    box_cells: Box | None = None  # of the image's grid; None: those that the box touches

    def token_count(self, encoded_hw: tuple[int, int]) -> int:
        """RoI tokens that this crop inserts. `encoded_hw`: the cells that it is encoded to, see `ImageGrid.crop_hw`."""
        if self.keep_cells is not None:
            return int(self.keep_cells.sum())
        return cell_count(self.grid_hw or encoded_hw)


@dataclass(frozen=True)
class LeftOut:
    """A region that fired and is not looked at again."""

    box_cells: Box
    reason: str  # such as "fewer than 2 cells"


@dataclass(frozen=True)
class RoiDecision:
    """The crops for a map, and why."""

    boxes_cells: Int64  # (n, 4), x1 y1 x2 y2, upper bounds exclusive: the regions that passed the area limits
    crops: tuple[Crop, ...]  # what is inserted, in order
    note: str | None  # why nothing is inserted, or a region was left out
    blurred_map: Float32  # (h, w): the values that the threshold was applied to (logits if it is negative)
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Component:
    """Connected cells above the threshold, diagonals included."""

    cells_yx: Int64  # (area, 2)

    @property
    def area(self) -> int:
        """Number of cells."""
        return len(self.cells_yx)

    @property
    def box_cells(self) -> Box:
        """The smallest box around it."""
        (y1, x1), (y2, x2) = self.cells_yx.min(axis=0), self.cells_yx.max(axis=0) + 1
        return int(x1), int(y1), int(x2), int(y2)


def roi_logits_from_scores(
    scores: Float32,
    hw: tuple[int, int],
    *,
    head_dim: int,
    multi_head: bool = True,
    loss: Literal["bce", "focal", "mse"] = "bce",
) -> Float32:
    """Reduce the scores of the last prompt token against the image tokens to one map.

    Args:
        scores: (H, h*w), q.k / sqrt(head_dim) of each head.
        hw: the image's grid.
        multi_head: False: one unscaled dot product over all heads.
        loss: "mse": the scores of a head are a distribution over the image.
    Returns: (h, w), before the sigmoid.
    """
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] != cell_count(hw):
        raise BadInput(
            f"scores have the shape {scores.shape}; expected (heads, {cell_count(hw)}) over the image's tokens alone"
        )
    if not multi_head:
        scores = scores.sum(axis=0, keepdims=True, dtype=np.float32) * np.float32(math.sqrt(head_dim))
    if loss == "mse":
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = scores / scores.sum(axis=1, keepdims=True)
    logits: Float32 = scores.mean(axis=0, dtype=np.float32)
    return logits.reshape(hw)


def roi_map(logits: Float32) -> Float32:
    """The sigmoid of (h, w) logits: how relevant each cell is."""
    # exp(88) is the largest that float32 can hold.
    return (1 / (1 + np.exp(-np.clip(logits, -88, 88)))).astype(np.float32, copy=False)


def blur(values: Float32) -> Float32:
    """A 3 x 3 Gaussian of sigma 1 with mirrored borders (the border row itself is not repeated) over (h, w)."""
    weights = np.exp(np.float32(-0.5) * np.array([1, 0, 1], np.float32))
    side, centre, _ = weights / weights.sum()
    padded = np.pad(values.astype(np.float32, copy=False), 1, mode="reflect" if min(values.shape) > 1 else "edge")
    rows = side * padded[:, :-2] + centre * padded[:, 1:-1] + side * padded[:, 2:]
    return np.asarray(side * rows[:-2] + centre * rows[1:-1] + side * rows[2:], np.float32)


def find_components(fired: Bool) -> list[Component]:
    """The 8-connected regions of an (h, w) mask, in the raster order of their first cells."""
    open_cells = {(int(y), int(x)) for y, x in np.argwhere(fired)}
    components = []
    for start in sorted(open_cells):
        if start not in open_cells:
            continue
        open_cells.remove(start)
        cells = [start]
        for y, x in cells:  # grows while it is read
            around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            touching = [cell for cell in around if cell in open_cells]
            open_cells.difference_update(touching)
            cells += touching
        components.append(Component(np.array(sorted(cells), np.int64)))
    return components


def decide_crops(logits: Float32, grid: ImageGrid, policy: RoiPolicy) -> RoiDecision:
    """Choose the crops.

    Args:
        logits: (h, w), before the sigmoid.
        grid: their cells over the source image.
    Raises: RunFailed for logits that are not finite numbers.
    """
    _check_logits(logits, grid.hw)
    blurred, threshold = _blurred_and_threshold(logits, policy.threshold)
    return decide_cells(blurred > threshold, blurred, threshold, grid, policy)


def decide_cells(fired: Bool, blurred: Float32, threshold: float, grid: ImageGrid, policy: RoiPolicy) -> RoiDecision:
    """`decide_crops` where it is known which cells fire.

    Args:
        fired: (h, w)
        blurred, threshold: what they were compared with, for the note and the decision
    """
    most_cells = policy.most_cells(grid.hw)
    components = find_components(fired)
    kept = [part for part in components if policy.min_cells <= part.area <= most_cells]
    boxes = [_expanded_box(part, grid.hw) for part in kept]
    crops: list[Crop] = []
    note: str | None
    if not boxes:
        note = _no_region_note(blurred, threshold, components, (policy.min_cells, most_cells))
    elif len(boxes) == 1 or (policy.upscale == "bbox" and len(boxes) <= MAX_BBOX_CROPS):
        crops, note = _box_crops(boxes, grid, policy.max_ratio)
    elif policy.upscale == "bbox":
        note = (
            f'nothing inserted: {len(boxes)} regions, and upscale="bbox" shows at most {MAX_BBOX_CROPS}; '
            'upscale="mask" or a higher threshold zooms'
        )
    else:
        oversize = [part for part in components if part.area > most_cells]
        crops, note = _mask_crop(fired, oversize, grid, most_cells)
    left_out = _left_out(components, boxes, crops, grid, policy)
    return RoiDecision(np.array(boxes, np.int64).reshape(-1, 4), tuple(crops), note, blurred, left_out)


Decide = Callable[[Float32, tuple[int, int]], RoiDecision]  # logits (h,w), image (width, height) -> crops


class PolicyDecide(Protocol):
    """A `Decide` that also takes what the model knows of sinks."""

    def __call__(
        self, logits: Float32, image_wh: tuple[int, int], sink_logits: Float32 | None = None, /
    ) -> RoiDecision:
        """sink_logits: (h,w), how much the first token looks at each cell, before the sigmoid; None: not known."""
        ...


def without_sinks(decide: Decide) -> PolicyDecide:
    """`decide` where sinks are known: they change nothing. Raises BadInput for what does not give decisions."""
    require_type("decide", decide, Callable)

    def decided(logits: Float32, image_wh: tuple[int, int], sink_logits: Float32 | None = None, /) -> RoiDecision:
        decision = decide(logits, image_wh)
        require_type("what decide returns", decision, RoiDecision)
        return decision

    return decided


def decide_by_policy(policy: RoiPolicy, grid_over: Callable[[tuple[int, int]], ImageGrid]) -> PolicyDecide:
    """`decide_crops` as a function of the logits and the image's size.

    grid_over: the grid over an image of this size, `spec.vision.grid`.
    """

    return without_sinks(lambda logits, image_wh: decide_crops(logits, grid_over(image_wh), policy))


def resize_features(features: Float32, grid_hw: tuple[int, int]) -> Float32:
    """Resize (rows, columns, D) bilinearly to (*grid_hw, D).

    Equals torch's `interpolate(mode="bilinear", align_corners=False)`: borders are repeated; no antialiasing
    when shrinking. Returns the dtype of `features`; computed in float32.
    """
    values = features.astype(np.float32, copy=False)
    row_taps, column_taps = _bilinear_taps(values.shape[0], grid_hw[0]), _bilinear_taps(values.shape[1], grid_hw[1])
    resized = np.zeros((*grid_hw, values.shape[2]), np.float32)
    # The order of these four products and sums is torch's; it decides exact ties of a mask at one half.
    for rows, down in row_taps:
        for columns, across in column_taps:
            resized += (down[:, None] * across)[..., None] * values[rows[:, None], columns]
    return resized.astype(features.dtype, copy=False)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{name} is {value!r}; expected a whole number of at least 1")


def _check_logits(logits: Float32, hw: tuple[int, int]) -> None:
    if logits.shape != hw:
        raise BadInput(f"RoI logits have the shape {logits.shape}; expected {hw}, the grid over the image")
    bad = int(np.count_nonzero(~np.isfinite(logits)))
    if bad:
        raise RunFailed(
            f"{bad} of {logits.size} RoI logits are NaN or infinite; expected finite numbers. A half-precision graph "
            "overflowed or a file is damaged: compare the bundle with its checkpoint, or export it in fp32"
        )


def _blurred_and_threshold(logits: Float32, threshold: float) -> tuple[Float32, float]:
    if threshold > 0:
        return blur(roi_map(logits)), threshold
    # The logits of a map trained as a distribution are small: only their ratio to the peak is meaningful.
    blurred = blur(logits)
    return blurred, float(blurred.max()) * abs(threshold)


def _expanded_box(component: Component, hw: tuple[int, int]) -> Box:
    """The box of a region; for a tiny region at least 3 x 3 cells, where the grid has room."""
    x1, y1, x2, y2 = component.box_cells
    if component.area < EXPANDED_BELOW_CELLS:
        (x1, x2), (y1, y2) = _expanded_span(x1, x2, hw[1]), _expanded_span(y1, y2, hw[0])
    return x1, y1, x2, y2


def _expanded_span(low: int, high: int, cells: int) -> tuple[int, int]:
    """The official expansion, joined with the region: its clamp would cut off the last row and column of the grid."""
    centre, size = (low + high) / 2, max(MIN_BOX_SIDE_CELLS, high - low + 1)
    expanded_low = max(0, int(centre - size / 2))
    expanded_high = min(cells - 1, int(centre + size / 2))
    return min(expanded_low, low), max(expanded_high, high)


def _left_out(
    components: Sequence[Component],
    boxes: Sequence[Box],
    crops: Sequence[Crop],
    grid: ImageGrid,
    policy: RoiPolicy,
) -> tuple[LeftOut, ...]:
    """What fired and is in no crop. `boxes`: of the regions within the limits."""
    least, most = policy.min_cells, policy.most_cells(grid.hw)
    # One crop of several regions holds the small ones, too.
    merged = bool(crops) and policy.upscale == "mask" and len(boxes) > 1
    found = [LeftOut(part.box_cells, f"more than {most} cells") for part in components if part.area > most]
    if merged:
        return tuple(found)
    found += [LeftOut(part.box_cells, f"fewer than {least} cells") for part in components if part.area < least]
    for box in boxes:
        if grid.box_px_from_cells(box) is None:
            found.append(LeftOut(box, "only padding"))
        elif not crops:
            few = f'upscale="bbox" shows at most {MAX_BBOX_CROPS} regions'
            found.append(LeftOut(box, few if policy.upscale == "bbox" else "no cell is left on the crop's grid"))
    return tuple(found)


def _box_crops(boxes: Sequence[Box], grid: ImageGrid, max_ratio: float | None) -> tuple[list[Crop], str | None]:
    crops = []
    for box in boxes:
        box_px = grid.box_px_from_cells(box)
        if box_px is not None:
            grid_hw = None if max_ratio is None else _grid_hw(box, max_ratio, grid.crop_hw(box_px))
            crops.append(Crop(box_px, grid_hw=grid_hw))
    if not crops:
        return [], "nothing inserted: every region lies in the padding around the image"
    dropped = len(boxes) - len(crops)
    return crops, f"left out: {dropped} of {len(boxes)} regions, only padding" if dropped else None


def _grid_hw(box_cells: Box, max_ratio: float, encoded_hw: tuple[int, int]) -> tuple[int, int]:
    """The token grid of a box: `max_ratio` times its cells, at most the encoded cells, at least 1."""
    x1, y1, x2, y2 = box_cells
    ratio = min(float(max_ratio), encoded_hw[0] / (y2 - y1), encoded_hw[1] / (x2 - x1))
    return max(1, round((y2 - y1) * ratio)), max(1, round((x2 - x1) * ratio))


def _mask_crop(
    fired: Bool, oversize: Sequence[Component], grid: ImageGrid, max_cells: int
) -> tuple[list[Crop], str | None]:
    """One crop around all cells above the threshold, single ones included, of which only those are kept."""
    mask = fired.copy()
    for component in oversize:
        mask[tuple(component.cells_yx.T)] = False
    y1, x1, y2, x2 = (int(edge) for corner in _corners(mask) for edge in corner)
    box_px = grid.box_px_from_cells((x1, y1, x2, y2))
    if box_px is None:
        return [], "nothing inserted: every region lies in the padding around the image"
    keep_cells = resize_features(mask[y1:y2, x1:x2, None].astype(np.float32), grid.crop_hw(box_px))[..., 0] > 0.5
    if not keep_cells.any():
        return [], 'nothing inserted: no cell of the mask is left on the crop\'s grid; upscale="bbox" shows it whole'
    note = f"left out: {_regions(len(oversize))} of more than {max_cells} cells" if oversize else None
    return [Crop(box_px, keep_cells=keep_cells)], note


def _corners(mask: Bool) -> tuple[Int64, Int64]:
    cells_yx = np.argwhere(mask)
    return cells_yx.min(axis=0), cells_yx.max(axis=0) + 1


def _no_region_note(
    blurred: Float32, threshold: float, components: Sequence[Component], limits: tuple[int, int]
) -> str:
    min_cells, most_cells = limits
    if not components:
        return f"nothing inserted: no cell is above {threshold:.3g}, the highest is {float(blurred.max()):.3g}"
    small = sum(part.area < min_cells for part in components)
    return (
        f"nothing inserted: {_regions(small)} of fewer than {min_cells} cells, "
        f"{_regions(len(components) - small)} of more than {most_cells}"
    )


def _regions(count: int) -> str:
    return f"{count} region" if count == 1 else f"{count} regions"


def _bilinear_taps(size: int, new_size: int) -> tuple[tuple[Int64, Float32], tuple[Int64, Float32]]:
    """The two old indices and their weights for each new index, in torch's float32 arithmetic."""
    ratio = float(np.float32(size) / np.float32(new_size))
    # torch computes this with one fused multiply-add, so it is rounded once.
    position = (ratio * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32).clip(0)
    first = np.minimum(position.astype(np.int64), size - 1)
    weight = (position - first).clip(0, 1).astype(np.float32)
    return (first, 1 - weight), (np.minimum(first + 1, size - 1), weight)
