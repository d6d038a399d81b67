"""One question on all layers of a checkpoint, from the first pass to the first token, with prefix reuse. PyTorch.

The first pass may stop after any layer: an RPN's tap, or the highest layer whose attention is needed. Its results are
reused: without a crop the upper layers continue, with one only RoI tokens and question go through the lower layers
again. So every method costs what it would cost in a runtime made for it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sdrpn.errors import ContextTooLong
from sdrpn.method.grids import ImageGrid, cell_count
from sdrpn.method.roi import Crop
from sdrpn.model.base import SdRpnModel
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import DecoderLayer, KvCache
from sdrpn.model.positions import RowPositions, prompt_positions

__all__ = ["LayeredPrompt"]


class LayeredPrompt:
    """A prompt on its way through the layers. P prefix tokens, S tokens of the first pass, L layers."""

    def __init__(
        self, model: SdRpnModel, prefix: Tensor, question: Tensor, grid: ImageGrid, max_new_tokens: int
    ) -> None:
        """prefix (P,D): the tokens before the image, and the image; question (n,D): the tokens after it.

        `grid`: the cells over the picture
        """
        self.model = model
        self._stack = LayerStack(model)
        self._prefix, self._question = prefix, question
        self._max_new_tokens, self._grid = max_new_tokens, grid
        self._placed = self._positions(())
        self._cache = KvCache()
        self._depth = 0
        self._hidden = torch.cat((prefix, question))[None]  # (1,S,D) after the first `depth` layers
        self._require_context(0)

    @property
    def layers(self) -> list[DecoderLayer]:
        """All layers of the LLM."""
        return self._stack.layers

    def look(self, depth: int) -> Tensor:
        """Run the first `depth` layers; returns the residual stream (1,S,D) after them."""
        self._hidden = self._run(self._hidden, 0, self._depth, depth)
        self._depth = depth
        return self._hidden

    @property
    def positions(self) -> Tensor:
        """Positions of the first pass, as `sdrpn.model.layers` takes them."""
        return self._placed.rows(0, self._hidden.shape[1], self._hidden.device)

    def answer(self, roi: Tensor, crops: Sequence[Crop], stop_ids: Collection[int]) -> list[int]:
        """Generate greedily with the crops' RoI tokens (r,D) between image and question; r may be 0."""
        self._placed = self._positions(crops)
        self._require_context(len(roi))
        count = len(self._prefix) + len(roi) + len(self._question)
        if self._depth == 0:  # no first pass: run everything at once
            prompt = torch.cat((self._prefix, roi, self._question))[None]
            hidden = self._run(prompt, 0)
        elif len(roi) == 0:
            hidden = self._run(self._hidden, 0, self._depth)
        else:
            hidden = self._second_pass(roi)
        return self._generate(hidden[:, -1], count, stop_ids)

    def _second_pass(self, roi: Tensor) -> Tensor:
        rows = len(self._prefix)
        self._cache.truncate(rows)
        self._run(self._hidden[:, :rows], 0, self._depth)
        return self._run(torch.cat((roi, self._question))[None], rows)

    def _positions(self, crops: Sequence[Crop]) -> RowPositions:
        before = len(self._prefix) - cell_count(self._grid.hw)
        return prompt_positions(self.model.spec, before, self._grid, len(self._question), crops)

    def _run(self, x: Tensor, start: int, first: int = 0, last: int | None = None) -> Tensor:
        """x (1,S,D), rows start.., through some of the layers."""
        positions = self._placed.rows(start, start + x.shape[1], x.device)
        return self._stack.run(x, positions, self._cache, first, last)

    def _generate(self, row: Tensor, place: int, stop_ids: Collection[int]) -> list[int]:
        """Generate from the last row (1,D) of the prompt."""
        tail, token_ids = self.model.tail, list[int]()
        while True:
            token_id = int(tail.head(tail.norm(row))[0].argmax())
            if token_id in stop_ids:
                return token_ids
            token_ids.append(token_id)
            if len(token_ids) == self._max_new_tokens:
                return token_ids
            embeds = self.model.embed(torch.tensor([[token_id]], device=row.device))
            row = self._run(embeds, place)[:, -1]
            place += 1

    def _require_context(self, roi: int) -> None:
        prompt, limit = len(self._prefix) + len(self._question), self.model.spec.llm.max_context
        if prompt + roi + self._max_new_tokens > limit:
            raise ContextTooLong(
                f"{prompt} prompt tokens, {roi} RoI tokens and {self._max_new_tokens} new tokens need "
                f"{prompt + roi + self._max_new_tokens} positions, the model has {limit}; shorten the question"
            )
