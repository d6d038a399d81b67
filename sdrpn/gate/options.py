"""Options of a gate's training: its kind, and every number that determines its weights. Knows no files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.train.options import Precision, TapStore, TrainOptions, chosen_preset

__all__ = ["GATE_PRESETS", "GateKind", "GateOptions", "GateStart", "gate_preset_named"]

GateKind = Literal["layers", "probe"]
GateStart = Literal["copied", "random"]


@dataclass(frozen=True)
class GateOptions(CheckedFields):
    """The defaults are those of Q-Zoom's training, but for the start, which its script leaves random.

    kind: "layers": whole decoder layers on the tap; "probe": a linear probe of the tap's last row and of the map
    layers: of the gate, where it has them
    start: "copied": from the LLM's layers after the tap; "random": as a new model's
    batch: questions per step, over all processes; micro_batch: questions that one process runs at once
    steps: the number of steps, in place of `epochs`; None: as many as `epochs` need
    precision: of the matrix products; weights, gradients and the residual stream are always float32
    taps: the format in which taps are stored between epochs, or "none": they are recomputed
    balanced: train on all questions that need another look and as many that do not; False: on all that teach something
    penalty: of a probe's weights, after every input is scaled to unit variance
    allowed_loss: the chosen threshold looks twice as rarely as it can with so much less accuracy on held-out questions
    validation_share: share of the images, with all questions about them, to hold out
    split_seed: seed of the choice of held-out images
    save_every: steps between saved states, from which an interrupted training resumes
    """

    kind: GateKind = "layers"
    layers: int = 3
    start: GateStart = "copied"
    learning_rate: float = 1e-4
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 1.0
    batch: int = 128
    micro_batch: int = 8
    epochs: int = 1
    steps: int | None = None
    precision: Precision = "bf16"
    taps: TapStore = "none"
    balanced: bool = True
    penalty: float = 1e-2
    allowed_loss: float = 0.005
    validation_share: float = 0.1
    split_seed: int = 0
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise BadInput(f"layers is {self.layers}; expected at least 1", options=("gate_layers",))
        for name in ("penalty", "allowed_loss"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise BadInput(f"{name} is {value}; expected a number of at least 0", options=(name,))
        if not 0 < self.validation_share < 1:
            raise BadInput(
                f"validation_share is {self.validation_share}; expected a number above 0, below 1: the threshold is "
                "chosen on what is held out",
                options=("validation_share",),
            )
        self.schedule()

    def schedule(self) -> TrainOptions:
        """What it has in common with the training of an RPN. Raises BadInput, as that does."""
        shared = {field.name for field in dataclasses.fields(TrainOptions)} & vars(self).keys()
        return TrainOptions(**{name: getattr(self, name) for name in shared})


GATE_PRESETS: Mapping[str, GateOptions] = {
    "official": GateOptions(),
    # By the best view's answers: of ten that another look changes, about three are wrong with it as well, or were right
    # before, so that 3 points there are fewer points of right answers.
    "tiny": GateOptions(
        layers=1,
        learning_rate=5e-4,
        batch=64,
        micro_batch=64,
        epochs=6,
        precision="fp32",
        taps="fp16",
        allowed_loss=0.03,
    ),
}


def gate_preset_named(name: str) -> GateOptions:
    """One of `GATE_PRESETS`; for a published model the official one. Raises BadInput for an unknown name."""
    return chosen_preset(name, GATE_PRESETS, lambda recipe: GATE_PRESETS["official"])
