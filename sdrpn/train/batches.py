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
    positions: Tensor  # (B,S)
    last_index: Tensor  # (B,), index of the prompt's last token
    image_index: Tensor  # (B,C), indices of the image tokens
    labels: Tensor  # (B,C)

    def cell_scores(self, scores: Tensor) -> Tensor:
        """Scores (B,H,S) of all tokens -> (B,H,C) of the image tokens."""
        return scores.gather(2, self.image_index[:, None].expand(-1, scores.shape[1], -1))


class TapBatches:
    """Makes batches of prompts and their taps."""

    def __init__(self, prompts: Sequence[LabelledPrompt], taps: TapSource, device: torch.device) -> None:
        self._prompts = prompts
        self._taps = taps
        self._device = device

    @property
    def hw(self) -> tuple[int, int]:
        """Rows and columns of the grid of every image; only of one grid can a batch be made."""
        rows, columns = self._prompts[0].cells.shape
        return rows, columns

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
        labels = torch.from_numpy(np.stack([prompt.cells.ravel() for prompt in prompts])).long()
        labels[torch.tensor([place is None for place in places])] = IGNORED
        starts = torch.tensor([len(prompt.ids_before) for prompt in prompts])
        return TapBatch(
            tap,
            torch.arange(longest, device=self._device).expand(len(taps), -1),
            torch.tensor([len(rows) - 1 for rows in taps], device=self._device),
            (starts[:, None] + torch.arange(labels.shape[1])).to(self._device),
            labels.to(self._device),
        )
