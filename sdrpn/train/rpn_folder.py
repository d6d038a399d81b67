"""From a checkpoint and a folder of labels to a folder with a trained RPN.

It has

    run.json                    everything that determines the weights; resuming requires the same
    state/                      the state from which an interrupted training resumes; removed at the end
    tensorboard/                curves
    training.json               run.json, the loss of every step, and the validation results
    curves.png                  precision over recall of the held-out labels
    rpn.safetensors, rpn.json   the RPN, for `sdrpn export --rpn`; written last
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from sdrpn.checkpoint import Checkpoint
from sdrpn.checkpoint.rpn_file import write_rpn
from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.host.atomic import replacing_file
from sdrpn.host.partial import remove_partial
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import base_from_checkpoint
from sdrpn.model.dtypes import torch_dtype
from sdrpn.train.base import FrozenBase
from sdrpn.train.batches import TapBatches
from sdrpn.train.board import Board, draw_curves
from sdrpn.train.label_set import LabelSet, Split, split_by_image
from sdrpn.train.loop import Step, TrainLoop
from sdrpn.train.options import TrainOptions
from sdrpn.train.run_state import STATE, History, load_state, note_run, require_startable, save_state
from sdrpn.train.start import rpn_from_layers
from sdrpn.train.taps import FILE_PROMPTS, ComputedTaps, StoredTaps, TapSource, store_taps

__all__ = ["TRAINING_NAME", "TrainReport", "TrainRequest", "train_rpn"]

TRAINING_NAME, CURVES_NAME = "training.json", "curves.png"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """The inputs and outputs of a training.

    images: the folder of images; needed only for taps that are not stored yet
    taps_dir: where taps are stored; trainings may share it
    """

    checkpoint: Checkpoint
    labels: LabelSet
    out: Path
    options: TrainOptions
    images: Path | None
    taps_dir: Path
    resume: bool = False

    def run(self) -> dict[str, Any]:
        """Everything that determines the weights."""
        return {
            "format_version": FORMAT_VERSION,
            "checkpoint_sha256": self.checkpoint.digest(),
            "labels_sha256": self.labels.digest(),
            **dataclasses.asdict(self.options),
        }


@dataclass(frozen=True)
class TrainReport:
    """The results of a training. The history has no validations where nothing was held out."""

    steps: int
    pairs: int
    held_out_pairs: int
    parameters: int
    history: History


def train_rpn(
    request: TrainRequest, accelerator: Accelerator, show_progress: ShowProgress = show_nothing
) -> TrainReport:
    """Train, and write the folder. Every process of `accelerator` calls this; one of them writes.

    Raises BadInput for a request that cannot be met, before any other work.
    """
    options = request.options
    spec = options.spec_for(request.labels.spec_for(request.checkpoint.spec))
    assert spec.rpn is not None
    _require_fitting(request, spec)
    split = split_by_image(request.labels.prompts, options.validation_share, options.split_seed, options.limit_pairs)
    options.steps_for(len(split.train))  # refuses too few
    require_startable(request.out, request.run(), resume=request.resume)
    taps = _taps(request, split, accelerator, show_progress)
    accelerator.wait_for_everyone()  # all have seen that the folder is new
    if accelerator.is_main_process:
        note_run(request.out, request.run())
    batches = TapBatches(request.labels.prompts, taps, spec, accelerator.device)
    rpn = rpn_from_layers(request.checkpoint, options.tap_layer, spec.rpn)
    parameters = sum(parameter.numel() for parameter in rpn.parameters())
    loop = TrainLoop(rpn, spec, options, batches, accelerator)
    history = _trained(request.out, loop, split, accelerator, show_progress)
    report = TrainReport(loop.step, len(split.train), len(split.held_out), parameters, history)
    state = accelerator.get_state_dict(loop.rpn)
    if accelerator.is_main_process:
        _write(request, spec, state, report)
    accelerator.wait_for_everyone()
    return report


def _require_fitting(request: TrainRequest, spec: ModelSpec) -> None:
    cells, always = spec.vision.image_tokens, family_of(spec).square(spec.vision) is not None
    for prompt in request.labels.prompts:
        # Where pictures have grids of their own, each is compared when it is opened.
        if prompt.cells.size > cells or (always and prompt.cells.size != cells):
            raise BadInput(
                f"the labels have {prompt.cells.size} cells per image and the checkpoint sees {cells}; label with "
                "this checkpoint"
            )
        if max((*prompt.ids_before, *prompt.ids_after)) >= spec.llm.vocabulary:
            raise BadInput(
                f"the labels have token ids beyond the checkpoint's vocabulary of {spec.llm.vocabulary}; label with "
                "this checkpoint"
            )


def _taps(request: TrainRequest, split: Split, accelerator: Accelerator, show_progress: ShowProgress) -> TapSource:
    options, prompts = request.options, request.labels.prompts

    def make_base() -> FrozenBase:
        if request.images is None or not request.images.is_dir():
            raise BadInput(f"the folder of images {request.images or ''} does not exist; name it", options=("images",))
        dtype = torch_dtype(options.precision)
        model = base_from_checkpoint(request.checkpoint, options.tap_layer, dtype).to(accelerator.device)
        model.spec = request.labels.spec_for(model.spec)
        return FrozenBase(model, request.images, options.precision, square=request.labels.padded_for(model.spec))

    if options.taps == "none":
        return ComputedTaps(make_base(), prompts)
    # Whole files, so that trainings on fewer pairs share them.
    files = -(-(max((*split.train, *split.held_out)) + 1) // FILE_PROMPTS)
    needed = prompts[: files * FILE_PROMPTS]
    key = f"{request.checkpoint.digest()} {options.tap_layer} {options.precision}{_seen(request.labels)}"
    share = accelerator.process_index, accelerator.num_processes
    with show_progress("taps", "questions") as progress:
        store_taps(request.taps_dir, needed, key, options.taps, make_base, share=share, progress=progress)
    accelerator.wait_for_everyone()
    return StoredTaps(request.taps_dir, needed, key, options.taps)


def _seen(labels: LabelSet) -> str:
    """What decides taps besides the checkpoint: how pictures become tokens. Empty for the first family's usual way."""
    tokens = labels.image_tokens
    cut = "" if labels.fit == "pad" else f" {labels.fit}"
    return cut if tokens is None else f"{cut} {tokens[0]}:{tokens[1]}"


def _trained(
    out: Path, loop: TrainLoop, split: Split, accelerator: Accelerator, show_progress: ShowProgress
) -> History:
    """Train to the end, from the beginning or from the saved state of an earlier run."""
    options, history = loop.options, load_state(out, loop, accelerator)
    board = Board(out if accelerator.is_main_process else None, loop.step)
    steps = options.steps_for(len(split.train))
    stops = {round(steps * part / options.validations) for part in range(options.validations + 1)}
    started_s = time.perf_counter() - history.seconds

    def validate() -> None:
        found = loop.validate(split.held_out)
        if found is not None:
            history.validations.append(found)
            board.add_validation(found)

    if loop.step == 0:
        validate()
    with show_progress("train", "steps") as progress:

        def after(step: Step) -> None:
            history.losses.append(step.loss)
            board.add_step(step)
            if step.number in stops:
                validate()
            history.seconds = time.perf_counter() - started_s
            if step.number % options.save_every == 0 and step.number < steps:
                save_state(out, loop, history, accelerator)
            progress(step.number, steps)

        loop.run(split.train, steps, after)
    board.close()
    return history


def _write(request: TrainRequest, spec: ModelSpec, state: dict[str, Tensor], report: TrainReport) -> None:
    def read(name: str) -> NDArray[Any]:
        array: NDArray[np.float32] = state[name.removeprefix("rpn.")].float().cpu().numpy()
        return array

    out, history = request.out, report.history
    with replacing_file(out / TRAINING_NAME) as path:
        path.write_text(json.dumps(_description(request, report), indent=1) + "\n", "utf-8")
    if history.validations:
        draw_curves(out / CURVES_NAME, history.validations[0], history.validations[-1])
    options = request.options
    note = f"trained in {report.steps} steps on {report.pairs} labelled questions, seed {options.seed}"
    write_rpn(out, spec, read, note=note, policy=_policy(spec, history))
    remove_partial(out / STATE)  # the RPN is written: leftovers are not an error


def _policy(spec: ModelSpec, history: History) -> ModelPolicy | None:
    """The family's, with the threshold whose boxes fit the held-out labels best; None where nothing was held out."""
    if not history.validations:
        return None
    threshold = history.validations[-1].quality.best.threshold
    return ModelPolicy(dataclasses.replace(family_of(spec).policy(spec), threshold=threshold), "labels")


def _description(request: TrainRequest, report: TrainReport) -> dict[str, Any]:
    counts = {"steps": report.steps, "pairs": report.pairs, "held_out_pairs": report.held_out_pairs}
    return {
        **request.run(),
        "labels": request.labels.about,
        **counts,
        "parameters": report.parameters,
        **dataclasses.asdict(report.history),
    }
