"""Train an RPN on a folder of labels, in one process or in every process of a launcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.accelerators import TrainingDevice, open_accelerator
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.train.options import TrainOptions
    from sdrpn.train.rpn_folder import TrainReport, TrainRequest

__all__ = ["LabelTraining", "TrainedRpn", "TrainingRequest", "train", "train_rpn"]

_EXTRA = ("train", "sdrpn train")


@dataclass(frozen=True)
class LabelTraining(CheckedFields):
    """Which checkpoint and labels to train on, and where: what the trainings of RPN and gate have in common.

    checkpoint: pictures are fitted as for the labels, whatever its `fit` says
    labels: folder of labels
    out: folder to write: new or empty, or with `resume` that of a training with the same settings, to go on with
    images: folder of the images; None: the one that was labelled
    taps_dir: where tap activations are stored; trainings of one checkpoint can share it; None: `taps` in `labels`
    device: "auto": a GPU if there is one, or the launcher's device; "cuda": a GPU, or an error
    threads: of the CPU, in each process of a launcher; None: one per free core, at most OMP_NUM_THREADS
    preset: the name that the settings come from, which must not be that of another family's model; None: from none
    """

    checkpoint: CheckpointParts
    labels: Path
    out: Path
    _: KW_ONLY
    images: Path | None = None
    taps_dir: Path | None = None
    device: TrainingDevice = "auto"
    threads: int | None = None
    preset: str | None = None
    resume: bool = False

    def require_preset(self, checkpoint: Checkpoint) -> None:
        """Raise BadInput for a preset of a model of another family."""
        if self.preset is not None:
            from sdrpn.train.options import require_preset_of

            require_preset_of(checkpoint.spec, self.preset)


@dataclass(frozen=True)
class TrainingRequest(LabelTraining):
    """A training of an RPN on the labels of `label_questions`, above the base model.

    options: all training settings that decide the weights
    """

    options: TrainOptions


@dataclass(frozen=True)
class TrainedRpn:
    """The folder that was written, and how the training went.

    is_main: whether this is the launcher's main process, which reports
    """

    out: Path
    options: TrainOptions
    report: TrainReport
    is_main: bool

    def to_json(self) -> dict[str, Any]:
        """The result as `sdrpn train --json` prints it."""
        report, history, found = self.report, self.report.history, self.report.history.validations
        return {
            "out": self.out,
            "tap_layer": self.options.tap_layer,
            "rpn_layers": self.options.rpn_layers,
            "steps": report.steps,
            "pairs": report.pairs,
            "held_out_pairs": report.held_out_pairs,
            "parameters": report.parameters,
            "seconds": history.seconds,
            "loss": history.losses[-1],
            "best_threshold": found[-1].quality.best.threshold if found else None,
            "validations": found,
        }


def train_rpn(
    checkpoint: Path | str,
    labels: Path | str,
    out: Path | str,
    options: TrainOptions | None = None,
    *,
    preset: str = "official",
    vision_tower: Path | str | None = None,
    base: Path | str | None = None,
    projector: Path | str | None = None,
    images: Path | str | None = None,
    taps_dir: Path | str | None = None,
    device: TrainingDevice = "auto",
    resume: bool = False,
    threads: int | None = None,
    progress: ShowProgress = show_nothing,
    warn: Callable[[str], None] = lambda text: None,
) -> TrainedRpn:
    """Train an RPN on a folder of labels, and write it to a folder that `export_bundle` takes as `rpn`.

    Args:
        checkpoint, vision_tower, base, projector: see `sdrpn.checkpoint.open_checkpoint`
        labels: folder that `label_questions` wrote
        out: folder to write: new or empty, or with `resume` the folder of a training with the same settings
        options: training settings; None: those of `preset`, see `sdrpn.train.options.preset_named`
        images, taps_dir, device, threads: see `TrainingRequest`
        progress: (title, unit) -> a context manager that gives a function of (done, total)
        warn: called with warnings
    Raises: BadInput and BadCheckpoint before any work is done; MissingDependency without sdrpn[train]
    """
    named = None
    if options is None:
        from sdrpn.train.options import preset_named

        options, named = preset_named(preset), preset
    parts = CheckpointParts(checkpoint, vision_tower=vision_tower, base=base, projector=projector)
    request = TrainingRequest(
        parts,
        Path(labels),
        Path(out),
        options,
        images=None if images is None else Path(images),
        taps_dir=None if taps_dir is None else Path(taps_dir),
        device=device,
        resume=resume,
        threads=threads,
        preset=named,
    )
    return train(request, progress, warn)


def train(
    request: TrainingRequest,
    progress: ShowProgress = show_nothing,
    warn: Callable[[str], None] = lambda text: None,
) -> TrainedRpn:
    """See `train_rpn`. Every process of a launcher calls this; one of them shows progress, warns and writes."""
    with importing_extra(*_EXTRA):
        from sdrpn.labels.about import read_about_labels
    cut = read_about_labels(request.labels).get("fit") == "crop"
    parts = dataclasses.replace(request.checkpoint, fit="crop" if cut else "pad")
    parts.look(*_EXTRA)
    with importing_extra(*_EXTRA):
        import accelerate  # noqa: F401
        import torch  # noqa: F401

    from sdrpn.train.label_set import read_labels
    from sdrpn.train.rpn_folder import TrainRequest
    from sdrpn.train.rpn_folder import train_rpn as train_on_labels

    accelerator = open_accelerator(request.device)
    labels = read_labels(request.labels)
    with parts.open() as checkpoint, torch_threads(request.threads):
        request.require_preset(checkpoint)
        asked = TrainRequest(
            checkpoint,
            labels,
            request.out,
            request.options,
            request.images or labels.images,
            request.taps_dir or request.labels / "taps",
            request.resume,
        )
        is_main = bool(accelerator.is_main_process)
        if is_main:
            _warn_of_other_checkpoint(asked, warn)
        report = train_on_labels(asked, accelerator, progress if is_main else show_nothing)
    return TrainedRpn(request.out, request.options, report, is_main)


def _warn_of_other_checkpoint(request: TrainRequest, warn: Callable[[str], None]) -> None:
    labelled = request.labels.about.get("checkpoint_sha256")
    if labelled is not None and labelled != request.checkpoint.digest():
        warn("the labels were made by another checkpoint than the one to train on; both must use the same tokens")
