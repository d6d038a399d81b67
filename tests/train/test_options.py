"""Hyper-parameters: the official ones, the schedule, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from sdrpn.errors import BadInput
from sdrpn.families.registry import published_recipes
from sdrpn.method.spec import ModelSpec
from sdrpn.train.options import PRESETS, TrainOptions, require_preset_of
from tests.families.qwen.models import spec_3, spec_25


def test_the_official_numbers_are_the_default() -> None:
    options = TrainOptions()
    assert options == PRESETS["official"]
    assert (options.learning_rate, options.batch, options.epochs, options.warmup_share) == (5e-5, 512, 1, 0.03)
    assert (options.betas, options.weight_decay, options.gradient_clip) == ((0.9, 0.98), 0.0, 1.0)
    assert (options.tap_layer, options.rpn_layers, options.precision, options.loss) == (15, 3, "bf16", "bce")


def test_a_training_that_is_all_warm_up() -> None:
    options = TrainOptions(batch=10)
    assert options.steps_for(11) == 2
    with pytest.raises(BadInput, match=r"^1 step of 10 is all warm-up, at a learning rate of 0, so that nothing would"):
        options.steps_for(10)
    assert TrainOptions(batch=10, warmup_share=0).steps_for(10) == 1
    for steps in range(2, 40):
        for share in (0.03, 0.5, 0.99):
            TrainOptions(steps=steps, warmup_share=share).steps_for(10)


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl", "qwen3-vl"])
def test_presets_are_for_models_of_their_family(family: str, tiny_spec: ModelSpec) -> None:
    spec = {"llava": tiny_spec, "qwen2.5-vl": spec_25(), "qwen3-vl": spec_3()}[family]
    for name in PRESETS:
        require_preset_of(spec, name)
    for name in published_recipes():
        if name.startswith(family):
            require_preset_of(spec, name)
            continue
        with pytest.raises(BadInput, match=f"the preset {name} is the training of a .*, and the .* is a {family}; exp"):
            require_preset_of(spec, name)


def test_the_tiny_preset() -> None:
    options = PRESETS["tiny"]
    assert (options.tap_layer, options.rpn_layers, options.learning_rate) == (3, 2, 5e-4)
    assert (options.batch, options.epochs, options.gradient_clip, options.taps) == (64, 8, 1.0, "fp16")


def test_steps() -> None:
    assert TrainOptions(batch=10, epochs=3).steps_for(21) == 9
    assert TrainOptions(batch=10, epochs=3, steps=4).steps_for(21) == 4


def test_warm_up_and_half_a_cosine() -> None:
    options = TrainOptions(learning_rate=1.0, warmup_share=0.1)
    rates = [options.learning_rate_at(step, 100) for step in (0, 5, 10, 55, 99)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0.0003], abs=1e-4)
    assert TrainOptions(learning_rate=1.0, warmup_share=0).learning_rate_at(0, 1) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"split_seed": -1}, "split_seed is -1; expected at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a number above 0"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0; expected a number above 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; expected a number of at least 0"),
        ({"validation_share": 1.0}, "validation_share is 1.0; expected a number from 0, below 1"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TrainOptions(**changes)
