"""One question on all layers of a checkpoint, from the first pass to the answer, with prefix reuse. PyTorch.

The first pass may stop after any layer: an RPN's tap, or the highest layer whose attention is needed. Its results are
reused: without a crop the upper layers continue, with one only what the first pass did not have goes through the lower
layers again. So every method costs what it would cost in a runtime made for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdrpn.errors import ContextTooLong
from sdrpn.method.grids import cell_count
from sdrpn.method.roi import Crop
from sdrpn.model.base import SdRpnModel
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import DecoderLayer, KvCache
from sdrpn.model.looks import picture_look
from sdrpn.model.prompt_rows import PromptRows, prompt_rows
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt

__all__ = ["LayeredPrompt", "penalised"]


class LayeredPrompt:
    """A prompt on its way through the layers. S tokens of the first pass, L layers."""

    def __init__(
        self,
        model: SdRpnModel,
        picture: Image.Image,
        prompt: Prompt,
        max_new_tokens: int,
        look: LookTokens | None = None,
    ) -> None:
        """`look`: at the picture; None: it is encoded here"""
        self.model = model
        self._stack = LayerStack(model)
        self._picture, self._prompt, self._max_new_tokens = picture, prompt, max_new_tokens
        self._look = picture_look(model, picture) if look is None else look
        self._rows = self._rows_with(picture, ())
        self._cache = KvCache()
        self._depth = 0
        self._hidden = self._rows.embeds  # (1,S,D) after the first `depth` layers
        self._require_context(0)

    @property
    def layers(self) -> list[DecoderLayer]:
        """All layers of the LLM."""
        return self._stack.layers

    def look(self, depth: int) -> Tensor:
        """Run the first `depth` layers, no fewer than before; returns the residual stream (1,S,D) after them."""
        self._hidden = self._run(self._rows, self._hidden, 0, self._depth, depth)
        self._depth = depth
        return self._hidden

    def stream_at(self, depth: int) -> Tensor:
        """The residual stream (1,S,D) after `depth` layers, computed again where the first pass went further."""
        if self._depth <= depth:
            return self.look(depth)
        rows = self._rows
        return self._stack.run(rows.embeds, self.positions, KvCache(), 0, depth, rows.deepstack)

    @property
    def positions(self) -> Tensor:
        """Positions of the first pass, as `sdrpn.model.layers` takes them."""
        return self._rows.positions

    def answer(
        self,
        crops: Sequence[Crop],
        stop_ids: Collection[int],
        *,
        pixels: Image.Image | None = None,
        keep_source: NDArray[np.bool_] | None = None,
    ) -> tuple[list[int], int]:
        """Generate greedily with the crops' RoI tokens, under the model's repetition penalty: token ids, RoI tokens.

        Args:
            pixels: a picture of the same size that the crops are cut from; None: the picture
            keep_source: (h*w,) image tokens of the second pass; None: all
        """
        if not crops:
            return self._generate(self._run(self._rows, self._hidden, 0, self._depth), self._rows, stop_ids), 0
        rows = self._rows_with(self._picture if pixels is None else pixels, crops, keep_source)
        roi = len(rows.crop_tokens)
        self._require_context(roi)
        hidden = self._second_pass(rows, keep_source)
        return self._generate(hidden, rows, stop_ids), roi

    def _second_pass(self, rows: PromptRows, keep_source: NDArray[np.bool_] | None) -> Tensor:
        """The residual stream after all layers: the rows of both passes through the rest, the others through all."""
        if self._depth == 0:  # no first pass: run everything at once
            return self._run(rows, rows.embeds, 0)
        image = self._look.embeds.shape[1] if keep_source is None or keep_source.all() else int(keep_source.argmin())
        common = len(self._prompt.ids_before) + image
        self._cache.truncate(common)
        self._run(self._rows, self._hidden[:, :common], 0, self._depth)
        return self._run(rows, rows.embeds[:, common:], common)

    def _rows_with(
        self, pixels: Image.Image, crops: Sequence[Crop], keep_source: NDArray[np.bool_] | None = None
    ) -> PromptRows:
        prompt = self._prompt
        return prompt_rows(self.model, pixels, self._look, prompt.ids_before, prompt.ids_after, crops, keep_source)

    def _run(self, rows: PromptRows, x: Tensor, start: int, first: int = 0, last: int | None = None) -> Tensor:
        """x (1,n,D), the rows start.., through some of the layers."""
        stop = start + x.shape[1]
        features = [feature[:, start:stop] for feature in rows.deepstack]
        return self._stack.run(x, rows.placed.rows(start, stop, x.device), self._cache, first, last, features)

    def _generate(self, hidden: Tensor, rows: PromptRows, stop_ids: Collection[int]) -> list[int]:
        """Generate from the prompt's residual stream (1,n,D)."""
        tail, row, place, token_ids = self.model.tail, hidden[:, -1], rows.embeds.shape[1], list[int]()
        said, penalty = {*self._prompt.ids_before, *self._prompt.ids_after}, self.model.spec.prompt.repetition_penalty
        while True:
            token_id = int(penalised(tail.head(tail.norm(row))[0].float(), said, penalty).argmax())
            if token_id in stop_ids:
                return token_ids
            token_ids.append(token_id)
            said.add(token_id)
            if len(token_ids) == self._max_new_tokens:
                return token_ids
            embeds = self.model.embed(torch.tensor([[token_id]], device=row.device))
            positions = rows.placed.rows(place, place + 1, row.device)
            row = self._stack.run(embeds, positions, self._cache)[:, -1]
            place += 1

    def _require_context(self, roi: int) -> None:
        ids, image = self._prompt, cell_count(self.model.spec.vision.grid(self._picture.size).hw)
        prompt, limit = len(ids.ids_before) + image + len(ids.ids_after), self.model.spec.llm.max_context
        if prompt + roi + self._max_new_tokens > limit:
            raise ContextTooLong(
                f"{prompt} prompt tokens, {roi} RoI tokens and {self._max_new_tokens} new tokens need "
                f"{prompt + roi + self._max_new_tokens} positions, the model has {limit}; shorten the question"
            )


def penalised(logits: Tensor, said: Collection[int], penalty: float) -> Tensor:
    """Logits (V,) with a repetition penalty on the tokens that were said: those below 0 times it, others over it."""
    if penalty == 1.0:
        return logits
    index = torch.tensor(sorted(set(said)), device=logits.device)
    chosen = logits[index]
    return logits.index_copy(0, index, torch.where(chosen < 0, chosen * penalty, chosen / penalty))
