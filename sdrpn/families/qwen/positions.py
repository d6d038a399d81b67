"""Positions on three axes (time, row, column), and which channels turn by which axis (M-RoPE). NumPy only.

Text counts on all three axes alike. An image's tokens stand at one time, at their rows and columns, and what follows
goes on behind the longer side. S tokens, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.families.family import Positions, Span
from sdrpn.families.qwen.tower_inputs import evenly_spaced
from sdrpn.method.grids import Box
from sdrpn.method.spec import ModelSpec

__all__ = ["AXES", "axes_of", "chunked_axes", "interleaved_axes", "positions_of_spans", "positions_on_source"]

AXES = 3
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


def positions_of_spans(spans: Sequence[Span]) -> Positions:
    """Positions of the spans of a prompt, in order; rows are (3,S) int64."""
    found: list[Int64] = []
    place = 0
    for span in spans:
        if isinstance(span, int):
            found.append(_text(place, span))
            place += span
        else:
            found.append(_image(place, span))
            place += max(span)
    rows = np.concatenate(found, axis=1) if found else np.empty((AXES, 0), np.int64)
    return Positions(rows, place)


def positions_on_source(
    before: int, image_hw: tuple[int, int], box_cells: Box, crop_hw: tuple[int, int], after: int
) -> Positions:
    """Positions of a second pass whose crop has the coordinates of its source cells (`reuse_src_pos`).

    The tokens: `before`, the image, the end of the image and the start of the crop, the crop, `after`. The crop's rows
    and columns are spread evenly over the box; fractions stay. Rows are (3,S) float32, as in the official code.
    """
    x1, y1, x2, y2 = box_cells
    end = before + max(image_hw)  # of the token behind the image
    down, across = (
        evenly_spaced(before + first, before + last - 1, count)
        for first, last, count in ((y1, y2, crop_hw[0]), (x1, x2, crop_hw[1]))
    )
    crop = np.empty((AXES, *crop_hw), np.float32)
    crop[0], crop[1], crop[2] = end + 2, down[:, None], across
    following = end + 2 + max(crop_hw)
    parts = (_text(0, before), _image(before, image_hw), _text(end, 2), crop.reshape(AXES, -1), _text(following, after))
    return Positions(np.concatenate([part.astype(np.float32) for part in parts], axis=1), following + after)


def chunked_axes(sections: Sequence[int]) -> Int64:
    """(d/2,) The axis of every pair of channels of Qwen2.5-VL: first all of time, then of rows, then of columns."""
    _require_sections(sections)
    return np.repeat(np.arange(AXES, dtype=np.int64), sections)


def interleaved_axes(sections: Sequence[int]) -> Int64:
    """(d/2,) The axes of Qwen3-VL in turns, as far as rows and columns have pairs; the rest is time's."""
    _require_sections(sections)
    pairs = np.arange(sum(sections), dtype=np.int64)
    axis = np.zeros(len(pairs), np.int64)
    for number in (1, 2):
        axis[(pairs % AXES == number) & (pairs < AXES * sections[number])] = number
    return axis


def axes_of(spec: ModelSpec) -> Int64:
    """(d/2,) The axis of every pair of channels of a model of either family."""
    turned = interleaved_axes if spec.vision.family == "qwen3-vl" else chunked_axes
    return turned(spec.llm.rope_sections)


def _text(start: int, count: int) -> Int64:
    return np.tile(np.arange(start, start + count, dtype=np.int64), (AXES, 1))


def _image(start: int, hw: tuple[int, int]) -> Int64:
    cells = np.indices(hw, np.int64).reshape(2, -1)
    return np.concatenate((np.zeros((1, cells.shape[1]), np.int64), cells)) + start


def _require_sections(sections: Sequence[int]) -> None:
    if len(sections) != AXES or min(sections) < 0 or not sum(sections):
        raise BadInput(f"mrope_section is {list(sections)}; expected three numbers, of pairs of channels for each axis")
