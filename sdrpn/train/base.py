"""The frozen model below the tap, which computes the input of an RPN. PyTorch.

P tokens of a prefix (the ids before the image, and the image), Q of the question after it, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdrpn.errors import BadInput
from sdrpn.images.image import open_image
from sdrpn.images.square import padded_to_square
from sdrpn.method.grids import ImageGrid
from sdrpn.model.base import BaseModel
from sdrpn.model.dtypes import torch_dtype
from sdrpn.model.layers import KvCache
from sdrpn.model.looks import picture_look
from sdrpn.model.positions import RowPositions, prompt_positions
from sdrpn.model.prompt_rows import plain_rows
from sdrpn.train.label_set import LabelledPrompt
from sdrpn.train.options import Precision

__all__ = ["FrozenBase", "autocast_for"]


def autocast_for(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Autocast for matrix products in this precision; a residual stream in float32 stays in float32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch_dtype(precision))


class FrozenBase:
    """Computes taps of prompts. Caches the last prefix: further questions about an image cost only their own tokens."""

    def __init__(self, model: BaseModel, images: Path | None, precision: Precision, *, square: bool = False) -> None:
        """Args:
        images: the folder that image names are relative to; None: taps cannot be computed (ValueError)
        square: pictures are padded to squares first
        """
        self._model, self._square = model, square
        self._images = images
        self._precision = precision
        self._prefix: tuple[tuple[str, tuple[int, ...]], Tensor, KvCache, ImageGrid] | None = None

    @property
    def width(self) -> int:
        """D."""
        return self._model.spec.llm.width

    @torch.inference_mode()
    def prefix(self, prompt: LabelledPrompt) -> Tensor:
        """The taps (P,D) of the prefix, float32, on the model's device."""
        return self._prefix_of(prompt)[0]

    @torch.inference_mode()
    def question(self, prompt: LabelledPrompt) -> Tensor:
        """The taps (Q,D) of the tokens after the image, float32, on the model's device."""
        tap, cache, grid = self._prefix_of(prompt)
        placed = prompt_positions(self._model.spec, len(prompt.ids_before), grid, len(prompt.ids_after))
        return self._run(self._embed(prompt.ids_after)[None], len(tap), placed, cache.fork())

    def _prefix_of(self, prompt: LabelledPrompt) -> tuple[Tensor, KvCache, ImageGrid]:
        key = prompt.image, prompt.ids_before
        if self._prefix is None or self._prefix[0] != key:
            if self._images is None:
                raise ValueError("no folder of images was named")
            picture, cache = open_image(self._images / prompt.image), KvCache()
            if self._square:
                picture = padded_to_square(picture)
            grid = self._model.spec.vision.grid(picture.size)
            if grid.hw != prompt.cells.shape:
                raise BadInput(
                    f"the labels of {prompt.image} have {prompt.cells.shape} cells and the checkpoint sees {grid.hw}; "
                    "label with this checkpoint"
                )
            rows = plain_rows(self._model, picture_look(self._model, picture), prompt.ids_before, (), grid)
            self._prefix = key, self._run(rows.embeds, 0, rows.placed, cache, rows.deepstack), cache, grid
        return self._prefix[1:]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embeds: Tensor = self._model.embed(torch.tensor(list(ids), device=self._model.embed.weight.device))
        return embeds

    def _run(
        self, embeds: Tensor, start: int, placed: RowPositions, cache: KvCache, deepstack: Sequence[Tensor] = ()
    ) -> Tensor:
        """Embeds (1,n,D), features of the same shape -> (n,D)."""
        positions = placed.rows(start, start + embeds.shape[1], embeds.device)
        features = [feature.float() for feature in deepstack]
        with autocast_for(self._precision, embeds.device):
            tap: Tensor = self._model.trunk(embeds.float(), positions, cache, features)
        return tap[0].float()
