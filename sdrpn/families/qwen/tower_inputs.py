"""What a vision tower is given beside pixels: rotary tables, windows, entries of the table of positions. NumPy only.

N patches in the order of `patches.py`, W windows, d channels of a head; `hw` is the grid of image tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.families.qwen.patches import patch_places, patches_hw
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, QwenVision

__all__ = [
    "PositionEntries",
    "WindowLayout",
    "evenly_spaced",
    "most_windows",
    "position_entries",
    "rotary_tables",
    "tower_inputs",
    "window_layout",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_THETA = 10000.0


def tower_inputs(hw: tuple[int, int], vision: QwenVision) -> dict[str, npt.NDArray[Any]]:
    """What the vision graph takes beside the pixels of a picture of `hw` image tokens, by name."""
    cos, sin = rotary_tables(hw, vision)
    tables: dict[str, npt.NDArray[Any]] = {"rope_cos": cos, "rope_sin": sin}
    if isinstance(vision, Qwen25Vision):
        layout = window_layout(hw, vision)
        tables |= {"window_rows": layout.rows, "window_valid": layout.valid, "patch_slot": layout.slots}
    if isinstance(vision, Qwen3Vision):
        entries = position_entries(hw, vision)
        tables |= {"position_rows": entries.rows, "position_weights": entries.weights}
    return tables


def rotary_tables(hw: tuple[int, int], vision: QwenVision) -> tuple[Float32, Float32]:
    """Cos and sin (N, d/2) each: the first half of the pairs of channels turns by the row, the second by the column."""
    pairs = vision.head_dim // 4  # for each of both axes
    exponents = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
    inverse = (np.float32(1) / (_THETA ** exponents.astype(np.float64)).astype(np.float32)).astype(np.float32)
    rows, columns = patch_places(hw, vision.merge)
    turns = np.stack((rows, columns), axis=1).astype(np.float32)  # (N,2)
    angles = (turns[:, :, None] * inverse).reshape(len(turns), -1).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """Which patches see each other in the layers that look within windows.

    rows: (W,K) the patches of every window; a slot without one repeats the window's first
    valid: (W,K) whether a slot has a patch of its own
    slots: (N,) where each patch lies in `rows`, flattened: the way back
    """

    rows: Int64
    valid: Bool
    slots: Int64

    @property
    def is_ragged(self) -> bool:
        """Whether any slot is empty: a window at the right or lower border."""
        return not bool(self.valid.all())


def window_layout(hw: tuple[int, int], vision: Qwen25Vision) -> WindowLayout:
    """Windows of `window_cells` x `window_cells` image tokens, aligned to the upper left; those at the ends are cut.

    A window has at most K patches (64 in the released models) and at most as many as the picture has.
    """
    side, merge = vision.window_cells, vision.merge
    rows, columns = patch_places(hw, merge)
    across = -(-hw[1] // side)
    window = rows // (side * merge) * across + columns // (side * merge)  # (N,)
    order = np.argsort(window, kind="stable")
    counts = np.bincount(window)
    starts = np.cumsum(counts) - counts
    slot = np.arange(len(order)) - np.repeat(starts, counts)  # within its window, in the order of `order`
    width = vision.window_patches
    table = np.repeat(order[starts][:, None], width, axis=1)
    valid = np.zeros(table.shape, np.bool_)
    places = window[order] * width + slot
    table.reshape(-1)[places], valid.reshape(-1)[places] = order, True
    slots = np.empty(len(order), np.int64)
    slots[order] = places
    return WindowLayout(table, valid, slots)


def most_windows(vision: Qwen25Vision) -> int:
    """The most windows of any picture within the budget: W grows as cut ones do, at the borders of long pictures."""
    side, cells = vision.window_cells, vision.image_tokens
    return max(-(-rows // side) * -(-(cells // rows) // side) for rows in range(1, cells + 1))


@dataclass(frozen=True, eq=False)
class PositionEntries:
    """Four entries of the table of positions for every patch, and how much of each: bilinear interpolation.

    rows: (4,N) of the flattened table
    weights: (4,N)
    """

    rows: Int64
    weights: Float32


def position_entries(hw: tuple[int, int], vision: Qwen3Vision) -> PositionEntries:
    """The table stretched over the picture, corners on corners."""
    side = vision.position_side
    patch_rows, patch_columns = patches_hw(hw, vision.merge)
    down, across = (_neighbours(count, side) for count in (patch_rows, patch_columns))
    rows, columns = patch_places(hw, vision.merge)
    corners = [(y, x) for y in (0, 1) for x in (0, 1)]
    entries = [down.index[y][rows] * side + across.index[x][columns] for y, x in corners]
    weights = [down.weight[y][rows] * across.weight[x][columns] for y, x in corners]
    return PositionEntries(np.stack(entries), np.stack(weights))


def evenly_spaced(first: float, last: float, count: int) -> Float32:
    """(count,) float32 from `first` to `last`, with the bits of torch's linspace; of one number: `first`.

    torch counts from the nearer end, and fuses each product with its sum: one rounding.
    """
    if count == 1:
        return np.array([first], np.float32)
    start, end = np.float32(first), np.float32(last)
    step = np.float64((end - start) / np.float32(count - 1))
    numbers = np.arange(count)
    low = np.float64(start) + step * numbers
    high = np.float64(end) - step * (count - 1 - numbers)
    return np.where(numbers < count // 2, low, high).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Neighbours:
    index: Sequence[Int64]  # two: below and above
    weight: Sequence[Float32]


def _neighbours(count: int, side: int) -> _Neighbours:
    places = evenly_spaced(0, side - 1, count)
    low = places.astype(np.int64)
    part = places - low.astype(np.float32)
    return _Neighbours((low, np.minimum(low + 1, side - 1)), (np.float32(1) - part, part))
