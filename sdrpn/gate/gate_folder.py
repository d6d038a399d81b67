"""From a checkpoint and a folder of gate labels to a folder with its RPN and a trained gate.

It has

    run.json                    everything that determines the weights, where steps do; resuming requires the same
    state/                      the state from which an interrupted training resumes; removed at the end
    gate-training.json          what determines the weights, the loss of every step, and the results when held out
    gate-curve.png              accuracy over the share of questions that are looked at twice
    rpn.safetensors             the RPN, as it was
    gate.safetensors, rpn.json  the gate, and both described; rpn.json is written last
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator

from sdrpn.checkpoint import Checkpoint
from sdrpn.checkpoint.rpn_file import write_rpn
from sdrpn.errors import BadInput
from sdrpn.gate.curve import GateCurve, area_under_roc, gate_curve, thinned
from sdrpn.gate.curve_picture import draw_curve
from sdrpn.gate.gate_set import GateSample, GateSet, drawn_samples, seen_samples, split_questions
from sdrpn.gate.inputs import ViewTaps, bases_of, probe_inputs, sample_batches
from sdrpn.gate.loop import GateLoop
from sdrpn.gate.options import GateOptions
from sdrpn.gate.probe import fit_probe
from sdrpn.gate.start import gate_spec, gate_to_train
from sdrpn.host.atomic import replacing_file
from sdrpn.host.partial import remove_partial
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import BaseModel, base_from_checkpoint, tensor_from_array
from sdrpn.model.dtypes import torch_dtype
from sdrpn.model.gate import Gate
from sdrpn.model.rpn import Rpn
from sdrpn.train.base import FrozenBase
from sdrpn.train.batches import TapBatches
from sdrpn.train.run_state import STATE, load_state, note_run, require_startable, save_state
from sdrpn.train.taps import ComputedTaps, StoredTaps, TapSource, store_taps

__all__ = ["GateReport", "GateTraining", "GateValidation", "train_gate"]

TRAINING_NAME, CURVE_NAME = "gate-training.json", "gate-curve.png"
FORMAT_VERSION = 1
CURVE_POINTS = 101  # of the curve in the file

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GateTraining:
    """The inputs and outputs of a training.

    checkpoint: with its RPN
    images: the folder of images; needed only for taps that are not stored yet
    taps_dir: where taps are stored; trainings may share it
    rpn_note: what the RPN's file says of it
    resume: go on with the training of layers in `out`
    """

    checkpoint: Checkpoint
    labels: GateSet
    out: Path
    options: GateOptions
    images: Path | None
    taps_dir: Path
    rpn_note: str = ""
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
class GateValidation:
    """The gate on held-out questions, at every view at which it may have to decide.

    loss: cross-entropy; auc: area under the ROC curve, None where one kind of question is missing
    """

    loss: float
    auc: float | None
    curve: GateCurve
    threshold: float  # the chosen one
    share: float  # that is looked at twice at it
    accuracy: float


@dataclass(frozen=True)
class GateReport:
    """The results of a training; `before` is that of the gate before its first step."""

    samples: int
    held_out: int
    parameters: int
    before: GateValidation
    after: GateValidation
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train_gate(
    request: GateTraining, accelerator: Accelerator, show_progress: ShowProgress = show_nothing
) -> GateReport:
    """Train, and write the folder. Every process of `accelerator` calls this; one of them writes.

    Raises BadInput for a request that cannot be met, before any other work.
    """
    started = time.perf_counter()
    work = _Work(request, accelerator, show_progress)
    if request.options.kind == "probe":
        gate, report = work.fitted()
    else:
        gate, report = work.trained()
    report = dataclasses.replace(report, seconds=report.seconds + time.perf_counter() - started)
    if accelerator.is_main_process:
        _write(request, work.spec, gate, report)
    accelerator.wait_for_everyone()
    return report


class _Work:
    """What both kinds of gates need."""

    def __init__(self, request: GateTraining, accelerator: Accelerator, show_progress: ShowProgress) -> None:
        self.request, self.options, self.accelerator = request, request.options, accelerator
        self._show_progress = show_progress
        self.spec = gate_spec(request.checkpoint.spec, request.options)
        _require_fitting(request)
        labels, options = request.labels, self.options
        split = split_questions(labels, options.validation_share, options.split_seed)
        self.train = drawn_samples(labels, split.train, options.seed, balanced=options.balanced)
        self.held_out = seen_samples(labels, split.held_out)
        kinds = {sample.label for sample in self.train}
        if len(kinds) < 2:
            raise BadInput(
                "the questions that are not held out are of one kind, so that a gate would learn one answer for all; "
                "label more, or hold out others",
                options=("split_seed",),
            )
        if options.kind == "layers":
            options.schedule().steps_for(len(self.train))  # refuses too few
        require_startable(request.out, request.run(), resume=request.resume)
        self.batches = [self._batches(samples) for samples in (self.train, self.held_out)]

    def trained(self) -> tuple[Gate, GateReport]:
        """A gate with layers, by gradient descent, from the beginning or from the saved state of an earlier run."""
        out, accelerator = self.request.out, self.accelerator
        accelerator.wait_for_everyone()  # all have seen that the folder is new
        if accelerator.is_main_process:
            note_run(out, self.request.run())
        gate = gate_to_train(self.request.checkpoint, self.spec, self.options)
        parameters = sum(parameter.numel() for parameter in gate.parameters())
        loop = GateLoop(gate, self.options, accelerator)
        train, held_out = self.batches
        before = self.validated(loop.logits(held_out, len(self.held_out)))
        history = load_state(out, loop, accelerator)
        earlier_s, started_s = history.seconds, time.perf_counter()
        steps = self.options.schedule().steps_for(len(self.train))
        with self._show_progress("train", "steps") as progress:

            def after(step: Any) -> None:
                history.losses.append(step.loss)
                history.seconds = earlier_s + time.perf_counter() - started_s
                if step.number % self.options.save_every == 0 and step.number < steps:
                    save_state(out, loop, history, accelerator)
                progress(step.number, steps)

            loop.run(train, self.train, after)
        found = self.validated(loop.logits(held_out, len(self.held_out)))
        state = accelerator.get_state_dict(loop.gate)
        trained = Gate(self.spec)
        trained.load_state_dict({key: value.float().cpu() for key, value in state.items()})
        counts = len(self.train), len(self.held_out), parameters
        return trained, GateReport(*counts, before, found, loop.step, history.losses, earlier_s)

    def fitted(self) -> tuple[Gate, GateReport]:
        """A probe, at once. Every process computes the same."""
        rpn = self._rpn()
        options, (train, held_out) = self.options, self.batches
        known, unseen = (
            probe_inputs(rpn, batches, len(samples), self.spec, options.micro_batch, options.precision).joined()
            for batches, samples in ((train, self.train), (held_out, self.held_out))
        )
        labels = torch.tensor([sample.label for sample in self.train])
        gate = Gate(self.spec)
        weight, bias = fit_probe(known, labels, options.penalty)
        gate.load_state_dict({"head.weight": weight, "head.bias": bias})
        logits = (unseen @ weight[0].double() + bias.double()).numpy()
        parameters = sum(parameter.numel() for parameter in gate.parameters())
        before = self.validated(np.zeros(len(self.held_out)))
        return gate, GateReport(len(self.train), len(self.held_out), parameters, before, self.validated(logits))

    def validated(self, logits: Floats) -> GateValidation:
        """What these logits of the held-out samples are worth."""
        labels = self.request.labels
        needed = np.array([sample.label for sample in self.held_out])
        once, twice = (
            np.array([labels.questions[sample.question].judged.right[place] for sample, place in pairs])
            for pairs in (
                [(sample, sample.view) for sample in self.held_out],
                [(sample, -1) for sample in self.held_out],
            )
        )
        scores = 1 / (1 + np.exp(-logits))
        curve = gate_curve(scores, once, twice)
        chosen = curve.cheapest_within(self.options.allowed_loss)
        loss = float(np.mean(np.logaddexp(0, np.where(needed, -logits, logits))))
        auc = area_under_roc(logits, needed)
        return GateValidation(loss, auc, curve, chosen.threshold, chosen.share, chosen.accuracy)

    def _batches(self, samples: Sequence[GateSample]) -> TapBatches:
        labels, device = self.request.labels, self.accelerator.device
        views = sorted({sample.view for sample in samples})
        sources = {view: self._taps(view, [sample for sample in samples if sample.view == view]) for view in views}
        return sample_batches(labels, samples, ViewTaps(samples, sources), self.spec, device)

    def _taps(self, view: int, samples: Sequence[GateSample]) -> TapSource:
        request, options = self.request, self.options
        prompts = [request.labels.questions[sample.question].prompt(view) for sample in samples]
        if options.taps == "none":
            return ComputedTaps(self._base(view), prompts)
        key = f"{request.checkpoint.digest()} {self.spec.tap_layer} {options.precision} {request.labels.views[view]}"
        share = self.accelerator.process_index, self.accelerator.num_processes
        with self._show_progress(f"taps at {request.labels.views[view]}", "questions") as progress:
            store_taps(
                request.taps_dir, prompts, key, options.taps, lambda: self._base(view), share=share, progress=progress
            )
        self.accelerator.wait_for_everyone()
        return StoredTaps(request.taps_dir, prompts, key, options.taps)

    def _base(self, view: int) -> FrozenBase:
        """The frozen layers as they see a view; they are read once."""
        request = self.request
        if request.images is None or not request.images.is_dir():
            raise BadInput(f"the folder of images {request.images or ''} does not exist; name it", options=("images",))
        if not hasattr(self, "_of_view"):
            dtype = torch_dtype(self.options.precision)
            read = base_from_checkpoint(request.checkpoint, self.spec.tap_layer, dtype).to(self.accelerator.device)

            def make(model: BaseModel) -> FrozenBase:
                return FrozenBase(model, request.images, self.options.precision)

            self._of_view = bases_of(read, request.labels, make)
        return self._of_view(view)

    def _rpn(self) -> Rpn:
        rpn = Rpn(self.spec)
        read = self.request.checkpoint.read
        rpn.load_state_dict({key: tensor_from_array(read(f"rpn.{key}"), torch.float32) for key in rpn.state_dict()})
        return rpn.eval().to(self.accelerator.device)


def _require_fitting(request: GateTraining) -> None:
    """Raise BadInput where the labels are of another model."""
    labelled = request.labels.about.get("checkpoint_sha256")
    if labelled != request.checkpoint.digest():
        raise BadInput(
            "the gate labels were made by another checkpoint, or with another RPN, whose answers say nothing of this "
            "one; label with this checkpoint and this RPN",
            options=("labels",),
        )
    vocabulary = request.checkpoint.spec.llm.vocabulary
    if any(max((*each.ids_before, *each.ids_after)) >= vocabulary for each in request.labels.questions):
        raise BadInput(f"the labels have token ids beyond the checkpoint's vocabulary of {vocabulary}; label again")


def _write(request: GateTraining, spec: ModelSpec, gate: Gate, report: GateReport) -> None:
    state, out = gate.state_dict(), request.out

    def read(name: str) -> npt.NDArray[Any]:
        if name.startswith("gate."):
            array: npt.NDArray[Any] = state[name.removeprefix("gate.")].numpy()
            return array
        return tensor_from_array(request.checkpoint.read(name), torch.float32).numpy()

    out.mkdir(parents=True, exist_ok=True)
    with replacing_file(out / TRAINING_NAME) as path:
        path.write_text(json.dumps(_description(request, report), indent=1) + "\n", "utf-8")
    draw_curve(out / CURVE_NAME, report.after)
    own = request.checkpoint.policy
    policy = ModelPolicy(dataclasses.replace(own.roi, gate_threshold=report.after.threshold), own.origin)
    own_note = f"the gate was trained on {report.samples} questions, seed {request.options.seed}"
    note = "; ".join(text for text in (request.rpn_note, own_note) if text)
    write_rpn(out, spec, read, note=note, policy=policy)
    remove_partial(out / STATE)  # the gate is written: leftovers are not an error


def _description(request: GateTraining, report: GateReport) -> dict[str, Any]:
    return {
        **request.run(),
        "labels": request.labels.about,
        **{name: getattr(report, name) for name in ("samples", "held_out", "parameters", "steps", "seconds", "losses")},
        "before": described(report.before),
        "after": described(report.after),
    }


def described(found: GateValidation) -> dict[str, Any]:
    """As JSON holds it, with a curve of at most CURVE_POINTS points."""
    return {
        **{name: getattr(found, name) for name in ("loss", "auc", "threshold", "share", "accuracy")},
        "once": found.curve.once,
        "twice": found.curve.twice,
        "gain_over_random": found.curve.gain_over_random,
        "curve": [dataclasses.asdict(point) for point in thinned(found.curve, CURVE_POINTS)],
    }
