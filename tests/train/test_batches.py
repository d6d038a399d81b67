"""Which pairs a step takes, who runs them, and what stands where in a batch."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from sdrpn.labels.denoise import IGNORED
from sdrpn.train.batches import TapBatches, micro_batches, step_pairs
from sdrpn.train.label_set import LabelledPrompt
from tests.tiny_models import tiny_spec


class FakeTaps:
    """Every row is the place of its prompt."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def tap(self, place: int) -> Tensor:
        return torch.full((self.lengths[place], 2), float(place + 1), dtype=torch.float16)


def test_an_epoch_takes_every_pair_once_in_an_order_of_its_own() -> None:
    pairs = list(range(100, 123))
    steps = [step_pairs(pairs, 10, seed=3, step=step) for step in range(6)]
    assert [len(step) for step in steps] == [10, 10, 3] * 2
    first, second = (list(chain(*epoch)) for epoch in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == pairs
    assert first != second
    assert steps[0] == step_pairs(pairs, 10, seed=3, step=0) != step_pairs(pairs, 10, seed=4, step=0)


def test_processes_share_a_step_and_wait_for_each_other() -> None:
    parts = [list(micro_batches(range(7), 2, rank, 3)) for rank in range(3)]
    assert [[len(micro) for micro in part] for part in parts] == [[2, 1]] * 3
    assert Counter(pair for part in parts for micro in part for pair in micro) == Counter([*range(7), None, None])


def test_shorter_prompts_end_earlier() -> None:
    prompts = [
        LabelledPrompt("a.png", (1, 2), (3, 4, 5), np.array([[1, 0, IGNORED, 0]], np.int8)),
        LabelledPrompt("b.png", (1,), (3,), np.array([[0, 1, 1, 0]], np.int8)),
    ]
    batches = TapBatches(prompts, FakeTaps([9, 6]), tiny_spec(), torch.device("cpu"))
    batch = batches.make([0, 1, None])
    assert batch.tap.dtype == torch.float32
    assert batch.tap.shape == (3, 9, 2)
    assert batch.tap[1, :, 0].tolist() == [2.0] * 6 + [0.0] * 3
    assert batch.last_index.tolist() == [8, 5, 8]
    assert batch.image_index.tolist() == [[2, 3, 4, 5], [1, 2, 3, 4], [2, 3, 4, 5]]
    assert batch.labels.tolist() == [[1, 0, IGNORED, 0], [0, 1, 1, 0], [IGNORED] * 4]
    scores = torch.arange(9.0).expand(3, 5, 9)
    assert batch.cell_scores(scores)[1, 4].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert batches.labelled_cells([0, 1]) == 7
