"""Second passes by hand: where the tokens of a crop stand, and which are dropped. Oracle of the product's own.

A prompt is ids before the image (the last of them starts the vision part), the image's tokens, and ids after it (the
first of them ends the vision part). Q-Zoom puts a second vision part behind the first; SD-RPN puts it inside the first:

    q-zoom   ... <start> image <end> <start> crop <end> question
    sd-rpn   ... <start> image <start> crop <end> <end> question

S tokens of the second pass, N of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.families.family import Positions, Span
from sdrpn.families.qwen.positions import positions_of_spans, positions_on_source
from sdrpn.method.grids import Box, cell_count
from sdrpn.method.spec import Scheme

__all__ = ["SecondPass", "first_positions", "second_pass"]

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SecondPass:
    """The tokens of a second pass in order.

    token_ids: (S,), the image's id at tokens of image and crop
    inserted: (S,), what the first pass did not have: the crop and the ids around it
    is_image: (S,) tokens of image or crop
    kept: (S,) False for tokens that are left out; they leave a gap in the positions of the others
    positions: of all S tokens
    """

    token_ids: Int64
    inserted: Bool
    is_image: Bool
    kept: Bool
    positions: Positions

    @property
    def kept_rows(self) -> npt.NDArray[np.float32 | np.int64]:
        """(3, kept tokens) the positions of what is computed."""
        rows: npt.NDArray[np.float32 | np.int64] = self.positions.rows[:, self.kept]
        return rows


def first_positions(before: int, image_hw: tuple[int, int], after: int) -> Positions:
    """Positions of a prompt with one image, before anything is inserted."""
    return positions_of_spans([before, image_hw, after])


def second_pass(
    scheme: Scheme,
    ids_before: Sequence[int],
    image_hw: tuple[int, int],
    ids_after: Sequence[int],
    crop_hw: tuple[int, int],
    *,
    image_id: int,
    source_box_cells: Box | None = None,
    keep_cells: Bool | None = None,
    keep_source: Bool | None = None,
) -> SecondPass:
    """Insert a crop.

    Args:
        ids_before, ids_after: at least the ids that start and end the vision part
        source_box_cells: Q-Zoom's `reuse_src_pos`: the crop has the coordinates of these source cells
        keep_cells: (h,w) of the crop; None: all of them
        keep_source: (N,) of the image; None: all of them
    """
    if not ids_before or not ids_after:
        raise BadInput("the prompt has no ids on one side of the image; expected those that start and end the vision")
    start, end = ids_before[-1], ids_after[0]
    image, crop = cell_count(image_hw), cell_count(crop_hw)
    leading, trailing = ([end, start], []) if scheme == "q-zoom" else ([start], [end])
    ids = [*ids_before, *[image_id] * image, *leading, *[image_id] * crop, *trailing, *ids_after]
    before, first = len(ids_before), len(ids_before) + image + len(leading)
    is_image, kept, inserted = (np.zeros(len(ids), np.bool_) for _ in range(3))
    is_image[before : before + image] = is_image[first : first + crop] = True
    inserted[first - 1 : first + crop + 1] = True  # with the id on each side: in Q-Zoom's, the prompt's own `end` moves
    kept[:] = True
    if keep_source is not None:
        kept[before : before + image] = keep_source
    if keep_cells is not None:
        kept[first : first + crop] = keep_cells.ravel()
    if source_box_cells is None:
        spans: list[Span] = [before, image_hw, len(leading), crop_hw, len(trailing) + len(ids_after)]
        positions = positions_of_spans(spans)
    elif scheme == "q-zoom":
        positions = positions_on_source(before, image_hw, source_box_cells, crop_hw, len(ids_after))
    else:
        raise BadInput("positions of the source are Q-Zoom's; the scheme is sd-rpn: leave them out")
    return SecondPass(np.array(ids, np.int64), inserted, is_image, kept, positions)
