"""Steady boxes over the frames of one source: maps are averaged over time, and cells go later than they come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields, require_type
from sdrpn.method.grids import ImageGrid
from sdrpn.method.roi import RoiPolicy, blur, decide_cells
from sdrpn.runtime.look import Look
from sdrpn.runtime.pictures.frames import Frame, rgb_from_frame
from sdrpn.runtime.regions import dropped_regions, regions_of

__all__ = ["Tracker", "TrackerOptions"]

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
GridOver = Callable[[tuple[int, int]], ImageGrid]

SAMPLES = 32  # a side: the points of two frames that are compared to notice a cut


@dataclass(frozen=True)
class TrackerOptions(CheckedFields):
    """How steady boxes are.

    weight: how much of the average the newest map is, 0 to 1; 1: no average.
    keep: a cell that counts goes on counting above this share of the threshold.
    cut, cut_levels: a scene was cut where more than this share of the picture changed by more than so many of 255.
    Raises: BadInput for values that cannot be.
    """

    # Chosen on moving tags, see tests/runtime/test_tracker.py: the average lags by (1 - weight) / weight frames behind
    # what moves, cells that are kept by more, and both together must stay within one frame.
    weight: float = 0.85
    keep: float = 0.8
    cut: float = 0.5
    cut_levels: int = 25

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "keep", "cut"):
            value: object = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise BadInput(f"{name} is {getattr(self, name)!r}; expected a number above 0, at most 1")


class Tracker:
    """Follows the looks of one question on one source, in the order of its frames. Not for several threads.

    tracker = Tracker(session.spec.vision.grid, session.policy)
    for frame in frames:
        look = tracker.update(session.look(frame, question), frame)
    """

    def __init__(self, grid_over: GridOver, policy: RoiPolicy, options: TrackerOptions | None = None) -> None:
        """Args:
        grid_over: the grid over an image of this size, `spec.vision.grid`
        policy: how maps become boxes; its threshold above 0
        Raises: BadInput for a negative threshold, which is relative to each map's own peak, and for what is no grid
            or no policy
        """
        _require_kinds(grid_over, policy, options)
        if policy.threshold <= 0:
            raise BadInput(f"the threshold is {policy.threshold}; boxes are tracked with a threshold above 0 only")
        self._grid_over, self._policy, self._options = grid_over, policy, options or TrackerOptions()
        self._average: Float32 | None = None
        self._counted: Bool | None = None  # (h, w): the cells that counted in the frame before
        self._image_wh: tuple[int, int] | None = None
        self._samples: npt.NDArray[np.int16] | None = None

    def reset(self) -> None:
        """Forget the frames before."""
        self._average = self._counted = self._image_wh = self._samples = None

    def update(self, look: Look, pixels: Frame | None = None) -> Look:
        """The look with the averaged map, and the boxes of that.

        Args: pixels: the frame as `Session.look` takes it, by which a cut is noticed; None: by the map alone
        Raises: BadInput for what is no look or no frame, BadImage for a frame of another shape or type
        """
        if not isinstance(look, Look):
            raise BadInput(f"look is {look!r}; expected what Session.look returns")
        grid = self._grid_over(look.image_wh)
        require_type("what grid_over returns", grid, ImageGrid)
        if self._begins_again(look, pixels):
            self._average = self._counted = None
        weight = np.float32(self._options.weight)
        average = look.roi_map if self._average is None else weight * look.roi_map + (1 - weight) * self._average
        blurred, threshold = blur(average), self._policy.threshold
        counts = blurred > threshold
        if self._counted is not None:
            counts |= self._counted & (blurred > self._options.keep * threshold)
        self._average, self._counted, self._image_wh = average, counts, look.image_wh
        decision = decide_cells(counts, blurred, threshold, grid, self._policy)
        return dataclasses.replace(
            look,
            boxes=regions_of(decision, average, grid),
            roi_map=average,
            dropped=dropped_regions(decision, average, grid),
            note=decision.note,
        )

    def _begins_again(self, look: Look, pixels: Frame | None) -> bool:
        """Whether the frame has nothing to do with the one before: another size, a cut, or a region that jumped."""
        cut = pixels is not None and self._is_cut(_frame_of(pixels))
        if self._average is None or self._counted is None:
            return True
        return cut or look.image_wh != self._image_wh or look.roi_map.shape != self._average.shape or self._jumps(look)

    def _is_cut(self, pixels: npt.NDArray[Any]) -> bool:
        rows, columns = (np.linspace(0, size - 1, SAMPLES).astype(np.int64) for size in pixels.shape[:2])
        samples = pixels[rows[:, None], columns].mean(axis=-1).astype(np.int16)
        before, self._samples = self._samples, samples
        if before is None:
            return False
        return bool((np.abs(samples - before) > self._options.cut_levels).mean() > self._options.cut)

    def _jumps(self, look: Look) -> bool:
        """Whether what the new map shows touches nothing of what counted: an average would show both places."""
        assert self._counted is not None  # asked before
        fired = blur(look.roi_map) > self._policy.threshold
        return bool(fired.any() and self._counted.any() and not (fired & _grown(self._counted)).any())


def _require_kinds(grid_over: object, policy: object, options: object) -> None:
    if not callable(grid_over):
        raise BadInput(f"grid_over is {grid_over!r}; expected session.spec.vision.grid")
    if not isinstance(policy, RoiPolicy):
        raise BadInput(f"policy is {policy!r}; expected a RoiPolicy, such as session.policy")
    if options is not None and not isinstance(options, TrackerOptions):
        raise BadInput(f"options is {options!r}; expected TrackerOptions, or None")


def _frame_of(pixels: object) -> npt.NDArray[Any]:
    """In steps of 0..255, as cuts are counted in; the order of channels does not matter."""
    found = rgb_from_frame(pixels)
    if found is None:
        raise BadInput(f"pixels is {pixels!r}; expected the frame, an (H, W, 3) array, or None")
    return found


def _grown(cells: Bool) -> Bool:
    """With the cells around them."""
    padded = np.pad(cells, 1)
    height, width = cells.shape
    shifts = [padded[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
    grown: Bool = np.logical_or.reduce(shifts)
    return grown
