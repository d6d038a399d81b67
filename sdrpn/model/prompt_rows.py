"""A prompt as the rows that enter the first layer: text, the image, the crops and what surrounds them. PyTorch.

S rows, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sdrpn.families.registry import family_of
from sdrpn.method.grids import ImageGrid
from sdrpn.method.roi import Crop
from sdrpn.model.base import BaseModel
from sdrpn.model.looks import crop_look
from sdrpn.model.positions import RowPositions, prompt_positions
from sdrpn.model.vision import LookTokens

__all__ = ["PromptRows", "plain_rows", "prompt_rows"]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """What the trunk takes.

    embeds: (1,S,D); deepstack: of the same shape, what is added after the first layers, 0 at rows of text
    placed: positions of these rows and of those that follow
    crop_tokens: (n,D) of the inserted crops
    """

    embeds: Tensor
    deepstack: tuple[Tensor, ...]
    placed: RowPositions
    crop_tokens: Tensor

    @property
    def positions(self) -> Tensor:
        """Positions of the S rows, as `sdrpn.model.layers` takes them."""
        return self.placed.rows(0, self.embeds.shape[1], self.embeds.device)


@torch.inference_mode()
def prompt_rows(
    model: BaseModel,
    picture: Image.Image,
    look: LookTokens,
    ids_before: Sequence[int],
    ids_after: Sequence[int],
    crops: Sequence[Crop] = (),
    keep_source: npt.NDArray[np.bool_] | None = None,
    seen: Sequence[LookTokens] | None = None,
) -> PromptRows:
    """The rows of a prompt.

    Args:
        look: at the whole picture
        crops: of it
        seen: looks at the crops; None: they are encoded here
        keep_source: (h*w,) the tokens of the image that stay; None: all of them
    """
    grid = model.spec.vision.grid(picture.size)
    seen = [crop_look(model, picture, crop) for crop in crops] if seen is None else seen
    around = family_of(model.spec).around_crop(model.spec, ids_before, ids_after) if crops else None
    first = look if keep_source is None else look.at(torch.from_numpy(keep_source).to(look.embeds.device))
    pieces: list[LookTokens | Sequence[int]] = [ids_before, first]
    for crop in seen:
        assert around is not None
        pieces += [around.leading, crop, around.trailing]
    inserted = torch.cat([look.embeds[0, :0], *(crop.embeds[0] for crop in seen)])
    placed = prompt_positions(model.spec, len(ids_before), grid, len(ids_after), crops, keep_source)
    return PromptRows(*_joined(model, [*pieces, ids_after], len(look.deepstack)), placed, inserted)


@torch.inference_mode()
def plain_rows(
    model: BaseModel, look: LookTokens, ids_before: Sequence[int], ids_after: Sequence[int], grid: ImageGrid
) -> PromptRows:
    """The rows of a prompt without crops; `grid`: the cells over its picture."""
    placed = prompt_positions(model.spec, len(ids_before), grid, len(ids_after))
    rows = _joined(model, [ids_before, look, ids_after], len(look.deepstack))
    return PromptRows(*rows, placed, look.embeds[0, :0])


def _joined(
    model: BaseModel, pieces: Sequence[LookTokens | Sequence[int]], features: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Embeddings (1,S,D), and as many dense features of the same shape."""
    embeds = [piece.embeds if isinstance(piece, LookTokens) else _text(model, piece) for piece in pieces]
    dense = [
        torch.cat([_feature(piece, number, text) for piece, text in zip(pieces, embeds, strict=True)], dim=1)
        for number in range(features)
    ]
    return torch.cat(embeds, dim=1), tuple(dense)


def _text(model: BaseModel, ids: Sequence[int]) -> Tensor:
    """(1,n,D)."""
    embeds: Tensor = model.embed(torch.tensor([list(ids)], dtype=torch.long, device=model.embed.weight.device))
    return embeds


def _feature(piece: LookTokens | Sequence[int], number: int, embeds: Tensor) -> Tensor:
    return piece.deepstack[number] if isinstance(piece, LookTokens) else torch.zeros_like(embeds)
