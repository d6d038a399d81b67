"""Short trainings compared: which is proposed, and that each is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput
from sdrpn.model.base import base_at, base_from_checkpoint, model_from_checkpoint
from sdrpn.train.label_set import read_labels
from sdrpn.train.options import TrainOptions
from sdrpn.train.proposal import Trial, best_trial, store_trial_taps, try_taps, usual_tap_layers
from tests.train.data import write_labels


def trial(tap_layer: int, rpn_layers: int, average_precision: float) -> Trial:
    return Trial(tap_layer, rpn_layers, 0.1, average_precision, 0.5)


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([trial(8, 2, 0.5)], (8, 2)),
        ([trial(8, 2, 0.5), trial(12, 2, 0.8), trial(16, 2, 0.81)], (12, 2)),  # nearly as good, and cheaper
        ([trial(8, 2, 0.5), trial(12, 2, 0.7), trial(16, 2, 0.81)], (16, 2)),
        ([trial(9, 3, 0.8), trial(10, 2, 0.81)], (10, 2)),  # as many layers: the better one
    ],
)
def test_the_cheapest_of_those_that_are_nearly_best(trials: list[Trial], expected: tuple[int, int]) -> None:
    best = best_trial(trials)
    assert (best.tap_layer, best.rpn_layers) == expected


def test_taps_around_the_middle() -> None:
    assert usual_tap_layers(32) == (8, 12, 16, 20)
    assert usual_tap_layers(6) == (2, 3, 4)
    assert usual_tap_layers(2) == (1,)


def test_every_pair_that_fits_is_trained(plain_checkpoint: Path, tmp_path: Path) -> None:
    labels = read_labels(write_labels(tmp_path))
    taps = tmp_path / "taps"
    options = TrainOptions(batch=8, steps=6, precision="fp32", taps="fp32", validation_share=0.2, learning_rate=1e-3)
    with open_checkpoint(plain_checkpoint) as checkpoint:  # four layers
        store_trial_taps(model_from_checkpoint(checkpoint), labels, tmp_path / "images", options, [2, 3], taps)
        candidates = [(3, 1), (2, 2), (2, 1), (3, 2), (2, 2)]
        found = try_taps(checkpoint, labels, options, candidates, taps, Accelerator(cpu=True))
        assert [(trial.tap_layer, trial.rpn_layers) for trial in found] == [(2, 1), (2, 2), (3, 1)]
        assert len({trial.loss for trial in found}) == 3
        assert all(0 < trial.average_precision <= 1 for trial in found)
        with pytest.raises(BadInput, match="fits an LLM of 4 layers"):
            try_taps(checkpoint, labels, options, [(4, 1)], taps, Accelerator(cpu=True))


def test_a_base_at_another_tap_is_that_of_the_checkpoint(text_checkpoint: Path) -> None:
    """Also above the tap that the model was cut at, and though its modules are the model's own."""
    with open_checkpoint(text_checkpoint) as checkpoint:
        model = model_from_checkpoint(checkpoint)
        for tap_layer in (1, 3):
            read, shared = base_from_checkpoint(checkpoint, tap_layer).state_dict(), base_at(model, tap_layer)
            assert shared.state_dict().keys() == read.keys()
            assert all(torch.equal(value, read[key]) for key, value in shared.state_dict().items())
            assert shared.embed is model.embed
