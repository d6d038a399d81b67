"""Which pairs a step trains on, which process runs them, and their tensors. PyTorch; knows no files.

B samples, S tokens of the longest sample, C cells, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdrpn.labels.denoise import IGNORED
from sdrpn.method.spec import ModelSpec
from sdrpn.model.positions import positions_on
from sdrpn.train.label_set import LabelledPrompt
from sdrpn.train.taps import TapSource

__all__ = ["TapBatch", "TapBatches", "micro_batches", "step_pairs"]


def step_pairs(pairs: Sequence[int], batch: int, seed: int, step: int) -> list[int]:
    """The pairs of one step: every epoch is shuffled differently, and its last step has the remaining pairs."""
    steps = -(-len(pairs) // batch)
    epoch, place = divmod(step, steps)
    order = np.random.default_rng((seed, epoch)).permutation(len(pairs))
    return [pairs[index] for index in order[place * batch : (place + 1) * batch]]


def micro_batches(pairs: Sequence[int], size: int, rank: int = 0, processes: int = 1) -> Iterator[list[int | None]]:
    """The part of a step that a process runs, in pieces of `size`.

    Every process gets equally many, so that they stay in step; None is a placeholder without a sample.
    """
    each = -(-len(pairs) // processes)
    own: list[int | None] = list(pairs[rank * each : (rank + 1) * each])
    own += [None] * (each - len(own))
    for start in range(0, each, size):
        yield own[start : start + size]


@dataclass(frozen=True, eq=False)
class TapBatch:
    """Inputs and labels of the RPN. Rows after the end of a shorter prompt are 0 and have no effect."""

    tap: Tensor  # (B,S,D) float32
    positions: Tensor  # (B,S) or (B,S,d/2), as `sdrpn.model.layers` takes them
    last_index: Tensor  # (B,), index of the prompt's last token
    image_index: Tensor  # (B,C), indices of the image tokens; 0 behind those of a smaller grid
    labels: Tensor  # (B,C); ignored there
    hw: Tensor  # (B,2), rows and columns of each grid

    def cell_scores(self, scores: Tensor) -> Tensor:
        """Scores (B,H,S) of all tokens -> (B,H,C) of the image tokens."""
        return scores.gather(2, self.image_index[:, None].expand(-1, scores.shape[1], -1))


class TapBatches:
    """Makes batches of prompts and their taps. Grids may differ from picture to picture."""

    def __init__(
        self, prompts: Sequence[LabelledPrompt], taps: TapSource, spec: ModelSpec, device: torch.device
    ) -> None:
        self._prompts, self._spec = prompts, spec
        self._taps = taps
        self._device = device

    def labelled_cells(self, places: Sequence[int]) -> int:
        """How many cells of these prompts are labelled."""
        return sum(int((self._prompts[place].cells != IGNORED).sum()) for place in places)

    def make(self, places: Sequence[int | None]) -> TapBatch:
        """The batch for these places of the label set; None becomes a sample without labels."""
        prompts = [self._prompts[place or 0] for place in places]
        taps = [self._taps.tap(place or 0) for place in places]
        longest = max(len(tap) for tap in taps)
        tap = torch.zeros(len(taps), longest, taps[0].shape[1], device=self._device)
        for row, rows in zip(tap, taps, strict=True):
            row[: len(rows)] = rows
        most = max(prompt.cells.size for prompt in prompts)
        labels = torch.full((len(prompts), most), IGNORED)
        image_index = torch.zeros(len(prompts), most, dtype=torch.long)
        for number, (place, prompt) in enumerate(zip(places, prompts, strict=True)):
            count, start = prompt.cells.size, len(prompt.ids_before)
            image_index[number, :count] = torch.arange(start, start + count)
            if place is not None:
                labels[number, :count] = torch.from_numpy(prompt.cells.ravel())
        return TapBatch(
            tap,
            torch.cat([self._positions(prompt, longest) for prompt in prompts]),
            torch.tensor([len(rows) - 1 for rows in taps], device=self._device),
            image_index.to(self._device),
            labels.to(self._device),
            torch.tensor([prompt.cells.shape for prompt in prompts], device=self._device),
        )

    def _positions(self, prompt: LabelledPrompt, rows: int) -> Tensor:
        """(1,rows), or (1,rows,d/2)."""
        height, width = prompt.cells.shape
        placed = positions_on(self._spec, len(prompt.ids_before), (height, width), len(prompt.ids_after))
        return placed.rows(0, rows, self._device)
