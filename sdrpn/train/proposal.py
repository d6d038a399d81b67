"""Propose the tap layer and the number of RPN layers by short trainings, scored on held-out labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import BadInput
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.model.base import SdRpnModel, base_at
from sdrpn.train.base import FrozenBase
from sdrpn.train.batches import TapBatches
from sdrpn.train.label_set import LabelSet, Split, split_by_image
from sdrpn.train.loop import Step, TrainLoop
from sdrpn.train.options import TrainOptions
from sdrpn.train.start import rpn_from_layers
from sdrpn.train.taps import StoredTaps, store_taps

__all__ = [
    "NEARLY_BEST",
    "Trial",
    "best_trial",
    "fitting_pairs",
    "store_trial_taps",
    "try_taps",
    "usual_tap_layers",
]

# An RPN with fewer layers is chosen if it loses less than this: every layer costs time in every question.
NEARLY_BEST = 0.98


@dataclass(frozen=True)
class Trial:
    """The results of a short training on held-out labels; fields as in sdrpn.train.quality."""

    tap_layer: int  # K
    rpn_layers: int  # T
    loss: float
    average_precision: float
    box_iou: float


def usual_tap_layers(layers: int) -> tuple[int, ...]:
    """Four tap layers around the middle of a stack of `layers` layers."""
    return tuple(sorted({max(1, round(layers * share)) for share in (0.25, 0.375, 0.5, 0.625)}))


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the fewest layers among those with nearly the best average precision."""
    enough = NEARLY_BEST * max(trial.average_precision for trial in trials)
    good = [trial for trial in trials if trial.average_precision >= enough]
    return min(good, key=lambda trial: (trial.tap_layer + trial.rpn_layers, -trial.average_precision))


def fitting_pairs(layers: int, candidates: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs (K,T) that an LLM of so many layers has room for, in order. Raises BadInput where there is none."""
    fitting = sorted({(tap, own) for tap, own in candidates if tap >= 1 and tap + own <= layers})
    if not fitting:
        raise BadInput(f"no tap and number of layers fits an LLM of {layers} layers; expected K + T of at most that")
    return fitting


def store_trial_taps(
    model: SdRpnModel,
    labels: LabelSet,
    images: Path,
    options: TrainOptions,
    tap_layers: Sequence[int],
    folder: Path,
    show_progress: ShowProgress = show_nothing,
) -> None:
    """Write the taps of every layer that trainings are to be compared at, so that the model need not stay for them.

    Args:
        model: in the precision of its taps, on its device
        options: `precision` and `taps` say how taps are computed and kept
        folder: what `try_taps` reads
    """
    for tap_layer in sorted(set(tap_layers)):
        base = FrozenBase(base_at(model, tap_layer), images, options.precision, square=labels.padded_for(model.spec))
        with show_progress(f"taps of layer {tap_layer}", "questions") as progress:
            store_taps(folder, labels.prompts, _key(tap_layer), options.taps, partial(_same, base), progress=progress)


def try_taps(
    checkpoint: Checkpoint,
    labels: LabelSet,
    options: TrainOptions,
    candidates: Sequence[tuple[int, int]],
    folder: Path,
    accelerator: Accelerator,
    show_progress: ShowProgress = show_nothing,
) -> list[Trial]:
    """Train once for every pair of K and T, with the same labels, steps and order.

    Args:
        checkpoint: whose layers RPNs start from
        options: tap and layers are ignored; `steps` is the length of a training
        candidates: (K,T); those that the LLM has no layers for are left out
        folder: what `store_trial_taps` wrote for each K
    Raises: BadInput where no candidate fits, or nothing can be held out
    """
    split = split_by_image(labels.prompts, options.validation_share, options.split_seed)
    trials: list[Trial] = []
    for tap_layer, rpn_layers in fitting_pairs(checkpoint.spec.llm.layers, candidates):
        asked = dataclasses.replace(options, tap_layer=tap_layer, rpn_layers=rpn_layers)
        taps = StoredTaps(folder, labels.prompts, _key(tap_layer), options.taps)
        batches = TapBatches(labels.prompts, taps, checkpoint.spec, accelerator.device)
        trials.append(_trial(checkpoint, split, asked, batches, accelerator, show_progress))
    return trials


def _same(base: FrozenBase) -> FrozenBase:
    return base


def _key(tap_layer: int) -> str:
    return f"trial {tap_layer}"


def _trial(
    checkpoint: Checkpoint,
    split: Split,
    options: TrainOptions,
    batches: TapBatches,
    accelerator: Accelerator,
    show_progress: ShowProgress,
) -> Trial:
    spec = options.spec_for(checkpoint.spec)
    assert spec.rpn is not None
    rpn = rpn_from_layers(checkpoint, options.tap_layer, spec.rpn)
    loop = TrainLoop(rpn, spec, options, batches, accelerator)
    steps = options.steps_for(len(split.train))
    with show_progress(f"K={options.tap_layer} T={options.rpn_layers}", "steps") as progress:

        def after(step: Step) -> None:
            progress(step.number, steps)

        loop.run(split.train, steps, after)
    found = loop.validate(split.held_out)
    accelerator.free_memory()
    if found is None:
        raise BadInput("no label was held out to score a training on; give more images")
    quality = found.quality
    return Trial(options.tap_layer, options.rpn_layers, found.loss, quality.average_precision, quality.best.box_iou)
