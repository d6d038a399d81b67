"""What turns the rows of a sequence: their own numbers, or where the model's family places the tokens. PyTorch.

S rows of a prompt, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdrpn.families.family import CropTokens, Layout
from sdrpn.families.registry import family_of
from sdrpn.method.grids import ImageGrid
from sdrpn.method.roi import Crop
from sdrpn.method.spec import ModelSpec

__all__ = ["OWN_NUMBERS", "RowPositions", "positions_on", "prompt_positions"]


@dataclass(frozen=True, eq=False)
class RowPositions:
    """The positions of a prompt's rows and of all that follow, as `sdrpn.model.layers` takes them."""

    # (S,), or (S,d/2) where the pairs of channels turn by axes of their own; None: every row has its number
    placed: npt.NDArray[Any] | None = None
    following: int = 0  # of row S; each further one is one more

    def rows(self, start: int, stop: int, device: torch.device | None = None) -> Tensor:
        """(1,stop-start), or (1,stop-start,d/2)."""
        if self.placed is None:
            return torch.arange(start, stop, device=device)[None]
        count = len(self.placed)
        further = np.arange(max(start - count, 0), max(stop - count, 0)) + self.following
        if self.placed.ndim == 2:
            further = np.repeat(further[:, None], self.placed.shape[1], axis=1)
        return torch.from_numpy(np.concatenate((self.placed[start:stop], further)))[None].to(device)


OWN_NUMBERS = RowPositions()


def prompt_positions(
    spec: ModelSpec,
    before: int,
    grid: ImageGrid,
    after: int,
    crops: Sequence[Crop] = (),
    keep_source: npt.NDArray[np.bool_] | None = None,
) -> RowPositions:
    """Positions of a prompt: `before` tokens, the image, the crops with the ids around them, `after` tokens.

    Up to the image's last row they are the same whatever follows, but for tokens of it that do not stay.

    keep_source: (h*w,) the tokens of the image that stay; None: all of them
    """
    inserted = tuple(CropTokens.of(crop, grid) for crop in crops)
    return _placed(spec, Layout(before, grid.hw, inserted, after, keep_source))


def positions_on(spec: ModelSpec, before: int, image_hw: tuple[int, int], after: int) -> RowPositions:
    """The same of a prompt without crops, of whose picture only the rows and columns of cells are known."""
    return _placed(spec, Layout(before, image_hw, (), after))


def _placed(spec: ModelSpec, layout: Layout) -> RowPositions:
    family = family_of(spec)
    found, axis_of = family.positions(spec, layout), family.axis_of(spec)
    if found is None:
        return OWN_NUMBERS
    return RowPositions(found.rows[0] if axis_of is None else found.rows[axis_of].T, found.following)
