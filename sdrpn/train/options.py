"""Options of a training: the position of the RPN, and every number that determines its weights. Knows no files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of, published_recipes, publisher_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.method.recipe import Recipe
from sdrpn.method.spec import AskedScheme, ModelSpec

__all__ = [
    "PRESETS",
    "LossNormalisation",
    "Precision",
    "TapStore",
    "TrainOptions",
    "chosen_preset",
    "preset_named",
    "require_preset_of",
]

Options = TypeVar("Options")

Precision = Literal["fp32", "bf16"]
LossNormalisation = Literal["global", "official"]
TapStore = Literal["fp16", "bf16", "fp32", "none"]


@dataclass(frozen=True)
class TrainOptions(CheckedFields):
    """The defaults are those of the official training of LLaVA-1.5-7B.

    tap_layer, rpn_layers: K and T
    scheme: of the RPN; "auto": the usual one of the model's family
    loss_normalisation: "global" divides by the labelled cells of a whole step, so that the split of a step does not
        matter; "official" averages the means of the micro-batches
    batch: pairs per step, over all processes; micro_batch: pairs that one process runs at once
    steps: the number of steps, in place of `epochs`; None: as many as `epochs` need
    precision: of the matrix products; weights, gradients and the residual stream are always float32
    taps: the format in which taps are stored between epochs, or "none": they are recomputed
    limit_pairs: train only on this many pairs, from the first
    validation_share: share of the images, with all questions about them, to hold out; 0: no validation
    validations: number of validations during the training, besides one before it
    split_seed: seed of the choice of held-out images
    save_every: steps between saved states, from which an interrupted training resumes
    """

    tap_layer: int = 15
    rpn_layers: int = 3
    scheme: AskedScheme = "auto"
    loss: Literal["bce", "focal"] = "bce"
    loss_normalisation: LossNormalisation = "global"
    learning_rate: float = 5e-5
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = 1.0
    batch: int = 512
    micro_batch: int = 8
    epochs: int = 1
    steps: int | None = None
    precision: Precision = "bf16"
    taps: TapStore = "none"
    limit_pairs: int | None = None
    validation_share: float = 0.05
    validations: int = 1
    split_seed: int = 0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch", "micro_batch", "epochs", "validations", "save_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("steps", "limit_pairs"):
            value = getattr(self, name)
            _require(name, value, value is None or value >= 1, "at least 1")
        for name in ("seed", "split_seed"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            _require(name, value, math.isfinite(value) and value > 0, "a number above 0")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "a number of at least 0")
        for name in ("warmup_share", "validation_share"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "a number from 0, below 1")

    def spec_for(self, spec: ModelSpec) -> ModelSpec:
        """The model with the RPN that is trained for it. Raises BadInput where it cannot have such a one."""
        rpn = family_of(spec).trained_rpn(self.rpn_layers, loss=self.loss, scheme=self.scheme)
        return dataclasses.replace(spec, tap_layer=self.tap_layer, rpn=rpn)

    def steps_for(self, pairs: int) -> int:
        """The number of steps of a training on this many pairs. Raises BadInput where none of them would learn."""
        steps = self.steps if self.steps is not None else self.epochs * -(-pairs // self.batch)
        if not any(self.learning_rate_at(step, steps) for step in range(min(steps, 2))):
            raise BadInput(
                f"{steps} step of {self.batch} is all warm-up, at a learning rate of 0, so that nothing would be "
                "learned; expected 2 steps or more: take smaller batches, more epochs, or no warm-up",
                options=("batch", "epochs", "steps", "warmup_share 0"),
            )
        return steps

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate: linear warm-up from 0, then half a cosine down to 0; `step` counts from 0."""
        warmup = math.ceil(self.warmup_share * steps)
        if step < warmup:
            return self.learning_rate * step / warmup
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _require(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise BadInput(f"{name} is {value}; expected {expected}", options=(name,))


# "tiny": the small model of a few million parameters, on a CPU.
PRESETS: Mapping[str, TrainOptions] = {
    "official": TrainOptions(),
    "tiny": TrainOptions(
        tap_layer=3,
        rpn_layers=2,
        learning_rate=5e-4,
        batch=64,
        micro_batch=64,
        epochs=8,
        precision="fp32",
        taps="fp16",
        validations=8,
    ),
}


def preset_named(name: str) -> TrainOptions:
    """One of `PRESETS`, or the official training of a published model. Raises BadInput for an unknown name."""
    return chosen_preset(name, PRESETS, lambda recipe: TrainOptions(**dataclasses.asdict(recipe)))


def chosen_preset(name: str, presets: Mapping[str, Options], of_recipe: Callable[[Recipe], Options]) -> Options:
    """One of `presets`, or what a published training gives. Raises BadInput for an unknown name."""
    if name in presets:
        return presets[name]
    recipes = published_recipes()
    if name not in recipes:
        raise BadInput(f"the preset {name!r} is unknown; expected {', '.join((*presets, *recipes))}")
    return of_recipe(recipes[name])


def require_preset_of(spec: ModelSpec, name: str) -> None:
    """Raise BadInput for the training of a model of another family."""
    own, publisher = family_of(spec), publisher_of(name, lambda family: family.recipes())
    if publisher is not None and publisher.name != own.name:
        raise BadInput(
            f"the preset {name} is the training of a {publisher.name}, and the checkpoint is a {own.name}; expected "
            f"{', '.join((*PRESETS, *own.recipes()))}",
            options=("preset",),
        )
