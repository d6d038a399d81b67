"""Propose where the tap lies and how many layers the RPN has: short trainings, scored on labels that were held out."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import BadInput
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.model.dtypes import torch_dtype
from sdrpn.model.llava import base_from_checkpoint
from sdrpn.train.base import FrozenBase
from sdrpn.train.batches import TapBatches
from sdrpn.train.label_set import LabelSet, Split, split_by_image
from sdrpn.train.loop import Step, TrainLoop
from sdrpn.train.options import TrainOptions
from sdrpn.train.start import rpn_from_layers
from sdrpn.train.taps import StoredTaps, store_taps

__all__ = ["NEARLY_BEST", "Trial", "best_trial", "try_taps", "usual_tap_layers"]

# The RPN of fewer layers is taken if it gives up less than this: every layer below costs time in every question.
NEARLY_BEST = 0.98


@dataclass(frozen=True)
class Trial:
    """What a short training came to, on held-out labels; the fields as in sdrpn.train.quality."""

    tap_layer: int  # K
    rpn_layers: int  # T
    loss: float
    average_precision: float
    box_iou: float


def usual_tap_layers(layers: int) -> tuple[int, ...]:
    """Four places around the middle of a stack of so many layers."""
    return tuple(sorted({max(1, round(layers * share)) for share in (0.25, 0.375, 0.5, 0.625)}))


def best_trial(trials: Sequence[Trial]) -> Trial:
    """Of those with nearly the best average precision, the one with the fewest layers."""
    enough = NEARLY_BEST * max(trial.average_precision for trial in trials)
    good = [trial for trial in trials if trial.average_precision >= enough]
    return min(good, key=lambda trial: (trial.tap_layer + trial.rpn_layers, -trial.average_precision))


def try_taps(
    checkpoint: Checkpoint,
    labels: LabelSet,
    images: Path,
    options: TrainOptions,
    candidates: Sequence[tuple[int, int]],
    scratch: Path,
    accelerator: Accelerator,
    show_progress: ShowProgress = show_nothing,
) -> list[Trial]:
    """Train once for every pair of K and T, with the same labels, steps and order.

    Args:
        options: without their tap and layers; `steps` says how long a training is
        candidates: (K,T); those that the LLM has no layers for are left out
        scratch: a folder for taps, which are removed again
    Raises BadInput where no candidate fits, or nothing can be held out.
    """
    layers = checkpoint.spec.llm.layers
    fitting = sorted({(tap, own) for tap, own in candidates if tap >= 1 and tap + own <= layers})
    if not fitting:
        raise BadInput(f"no tap and number of layers fits an LLM of {layers} layers; expected K + T of at most that")
    split = split_by_image(labels.prompts, options.validation_share, options.split_seed)
    trials: list[Trial] = []
    for tap_layer in sorted({tap for tap, _ in fitting}):
        with tempfile.TemporaryDirectory(dir=scratch, prefix=".taps-") as folder:
            at_tap = dataclasses.replace(options, tap_layer=tap_layer)
            batches = _batches(checkpoint, labels, images, at_tap, Path(folder), accelerator, show_progress)
            for rpn_layers in (own for tap, own in fitting if tap == tap_layer):
                asked = dataclasses.replace(at_tap, rpn_layers=rpn_layers)
                trials.append(_trial(checkpoint, split, asked, batches, accelerator, show_progress))
    return trials


def _batches(
    checkpoint: Checkpoint,
    labels: LabelSet,
    images: Path,
    options: TrainOptions,
    folder: Path,
    accelerator: Accelerator,
    show_progress: ShowProgress,
) -> TapBatches:
    def make_base() -> FrozenBase:
        dtype = torch_dtype(options.precision)
        model = base_from_checkpoint(checkpoint, options.tap_layer, dtype).to(accelerator.device)
        return FrozenBase(model, images, options.precision)

    with show_progress(f"taps of layer {options.tap_layer}", "questions") as progress:
        store_taps(folder, labels.prompts, "trial", options.taps, make_base, progress=progress)
    return TapBatches(labels.prompts, StoredTaps(folder, labels.prompts, "trial", options.taps), accelerator.device)


def _trial(
    checkpoint: Checkpoint,
    split: Split,
    options: TrainOptions,
    batches: TapBatches,
    accelerator: Accelerator,
    show_progress: ShowProgress,
) -> Trial:
    rpn = rpn_from_layers(checkpoint, options.tap_layer, options.rpn)
    loop = TrainLoop(rpn, checkpoint.spec.llm, options, batches, accelerator)
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
