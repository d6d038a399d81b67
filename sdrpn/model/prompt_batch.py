"""Several prompts side by side, shorter ones padded, so that they end together. PyTorch.

Prompts that start with the same rows, as questions about one picture do, share the work on them. Every row is counted
with the padding: first those of the P shared ones, then the S others, and what is generated after them.
B prompts, b different starts, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import KvCache
from sdrpn.model.positions import RowPositions
from sdrpn.model.prompt_rows import PromptRows

__all__ = ["PromptBatch", "Start", "prompt_batch"]

_Features = tuple[Tensor, ...]
_Run = Callable[[Tensor, Tensor, KvCache, _Features], None]  # embeds, positions, cache, features
Start = tuple[Hashable, int]  # equal for prompts that start alike, and the number of rows that they share


@dataclass(frozen=True, eq=False)
class PaddedRows:
    """Rows of several prompts, padded on the left.

    embeds: (B,S,D); deepstack: of the same shape, see `PromptRows`
    paddings: of each, the number of rows in front of it
    """

    embeds: Tensor
    deepstack: tuple[Tensor, ...]
    paddings: tuple[int, ...]

    def __len__(self) -> int:
        """S."""
        return self.embeds.shape[1]

    def part(self, rows: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Some rows: embeds and features."""
        return self.embeds[:, rows], tuple(feature[:, rows] for feature in self.deepstack)

    def is_padding(self) -> Tensor:
        """(B,S)."""
        front = torch.tensor(self.paddings, device=self.embeds.device)
        return torch.arange(len(self), device=self.embeds.device) < front[:, None]


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """The rows of all prompts.

    shared: the different starts, of 0 rows where no two prompts start alike
    starts: which of them each prompt starts with
    own: what follows in each prompt, at least its last row
    placed: positions of each prompt's rows, without padding
    """

    shared: PaddedRows
    starts: tuple[int, ...]
    own: PaddedRows
    placed: tuple[RowPositions, ...]

    def __len__(self) -> int:
        """B."""
        return len(self.placed)

    @property
    def rows(self) -> int:
        """P + S: the place of the first generated token."""
        return len(self.shared) + len(self.own)

    def place(self, prompt: int, row: int) -> int:
        """Where a row of a prompt lies."""
        shared = len(self.shared) - self.shared.paddings[self.starts[prompt]]
        behind = row + self.shared.paddings[self.starts[prompt]]
        return behind if row < shared else behind + self.own.paddings[prompt]

    def last_row(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Embeds and features (B,1,D)."""
        return self.own.part(slice(-1, None))

    def prefilled(self, layers: LayerStack, last: int | None = None, shared: KvCache | None = None) -> KvCache:
        """Keys and values of all rows but the last, of the first `last` layers; None: of all.

        shared: those of the shared rows, for each prompt, if they are known; see `shared_of`
        """

        def run(embeds: Tensor, positions: Tensor, cache: KvCache, features: _Features) -> None:
            layers.run(embeds, positions, cache, last=last, deepstack=features)

        return self._prefilled(run, shared)

    def prefilled_with_stream(self, layers: LayerStack, depth: int) -> tuple[KvCache, list[Tensor]]:
        """The same of all layers, and the residual stream (s,D) of every prompt, its last row too, after `depth`."""
        streams: list[Tensor] = []

        def run(embeds: Tensor, positions: Tensor, cache: KvCache, features: _Features) -> None:
            streams.append(layers.run(embeds, positions, cache, 0, depth, features))
            layers.run(streams[-1], positions, cache, depth, None, features)

        cache = self._prefilled(run)
        embeds, features = self.last_row()
        streams.append(layers.run(embeds, self.positions(self.rows - 1, self.rows), cache.fork(), 0, depth, features))
        shared = streams.pop(0) if len(self.shared) else streams[0][:, :0]
        own, front = torch.cat(streams, dim=1), self.shared.paddings
        return cache, [
            torch.cat((shared[start, front[start] :] if len(self.shared) else shared[0], rows[padding:]))
            for start, rows, padding in zip(self.starts, own, self.own.paddings, strict=True)
        ]

    def shared_of(self, cache: KvCache, prompts: Sequence[int]) -> KvCache:
        """What a cache has of the shared rows of some prompts, by their indices."""
        found = cache.of(torch.tensor(prompts, device=self.own.embeds.device, dtype=torch.long))
        found.truncate(len(self.shared))
        return found

    def positions(self, start: int, stop: int, prompts: Sequence[int] | None = None) -> Tensor:
        """(B,stop-start), or (B,stop-start,d/2), of these rows; anything for padding.

        prompts: only of these, by their indices; None: of all
        """
        numbers = range(len(self)) if prompts is None else prompts
        return torch.cat([self._positions(number, start, stop) for number in numbers])

    def _prefilled(self, run: _Run, shared: KvCache | None = None) -> KvCache:
        cache = self._start(run, shared)
        embeds, features = self.own.part(slice(0, -1))
        if embeds.shape[1]:
            run(embeds, self.positions(len(self.shared), self.rows - 1), cache, features)
        return cache

    def _start(self, run: _Run, known: KvCache | None) -> KvCache:
        own = self.own.is_padding()
        if not len(self.shared):
            return KvCache(own if any(self.own.paddings) else None)
        index = torch.tensor(self.starts, device=own.device)
        cache = self._shared(run).of(index) if known is None else known.fork()
        padded = any(self.shared.paddings) or any(self.own.paddings)
        cache.padding = torch.cat((self.shared.is_padding()[index], own), dim=1) if padded else None
        return cache

    def _shared(self, run: _Run) -> KvCache:
        """Keys and values of the different starts."""
        first_of = [self.starts.index(number) for number in range(len(self.shared.paddings))]
        cache = KvCache(self.shared.is_padding() if any(self.shared.paddings) else None)
        positions = self.positions(0, len(self.shared), first_of)
        run(self.shared.embeds, positions, cache, self.shared.deepstack)
        return cache

    def _positions(self, prompt: int, start: int, stop: int) -> Tensor:
        """(1,stop-start), or (1,stop-start,d/2)."""
        front, between = self.shared.paddings[self.starts[prompt]], self.own.paddings[prompt]
        pieces, device = list[Tensor](), self.own.embeds.device
        for first, end, padding, skipped in (
            (start, min(stop, len(self.shared)), front, front),
            (max(start, len(self.shared)), stop, len(self.shared) + between, front + between),
        ):
            if first >= end:
                continue
            before = min(max(padding - first, 0), end - first)
            found = self.placed[prompt].rows(first + before - skipped, max(end, first + before) - skipped, device)
            pieces.append(torch.cat((found.new_zeros(1, before, *found.shape[2:]), found), dim=1))
        return torch.cat(pieces, dim=1)


def prompt_batch(
    prompts: Sequence[PromptRows], starts: Sequence[Start] | None = None, *, apart: bool = False
) -> PromptBatch:
    """Prompts of one model side by side.

    starts: how each of them starts; the rest of it has at least one row. None: nothing is shared
    apart: the starts are shared rows even where no two of these prompts start alike
    """
    placed = tuple(prompt.placed for prompt in prompts)
    if starts is None or (len(set(starts)) == len(starts) and not apart):
        own = _padded([_cut(prompt, 0, prompt.embeds.shape[1]) for prompt in prompts])
        nothing = _padded([_cut(prompts[0], 0, 0)])
        return PromptBatch(nothing, (0,) * len(prompts), own, placed)
    different = list(dict.fromkeys(starts))
    shared = [_cut(prompts[starts.index(start)], 0, start[1]) for start in different]
    own = _padded(
        [_cut(prompt, start[1], prompt.embeds.shape[1]) for prompt, start in zip(prompts, starts, strict=True)]
    )
    return PromptBatch(_padded(shared), tuple(different.index(start) for start in starts), own, placed)


_Rows = tuple[Tensor, tuple[Tensor, ...]]


def _cut(prompt: PromptRows, first: int, last: int) -> _Rows:
    """Some of its rows."""
    return prompt.embeds[:, first:last], tuple(feature[:, first:last] for feature in prompt.deepstack)


def _padded(prompts: Sequence[_Rows]) -> PaddedRows:
    most = max(embeds.shape[1] for embeds, _ in prompts)
    paddings = tuple(most - embeds.shape[1] for embeds, _ in prompts)
    features = zip(*(features for _, features in prompts), strict=True)
    return PaddedRows(
        _side_by_side([embeds for embeds, _ in prompts], paddings),
        tuple(_side_by_side(feature, paddings) for feature in features),
        paddings,
    )


def _side_by_side(rows: Sequence[Tensor], paddings: Sequence[int]) -> Tensor:
    """(1,s,D) each, with so many rows of 0 in front -> (B,S,D)."""
    padded = [functional.pad(prompt, (0, 0, padding, 0)) for prompt, padding in zip(rows, paddings, strict=True)]
    return torch.cat(padded)
