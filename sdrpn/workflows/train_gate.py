"""Train a gate on a folder of gate labels, in one process or in every process of a launcher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.accelerators import open_accelerator
from sdrpn.workflows.torch_threads import torch_threads
from sdrpn.workflows.train import LabelTraining

if TYPE_CHECKING:
    from sdrpn.gate.gate_folder import GateReport
    from sdrpn.gate.options import GateOptions

__all__ = ["GateTrainingRequest", "TrainedGate", "train_gate"]

_EXTRA = ("train", "sdrpn train --gate")


@dataclass(frozen=True)
class GateTrainingRequest(LabelTraining):
    """A training of a gate on the labels of `label_gate`. The checkpoint has its RPN, as for these.

    options: all training settings that decide the weights
    """

    options: GateOptions


@dataclass(frozen=True)
class TrainedGate:
    """The folder that was written, and how the training went.

    is_main: whether this is the launcher's main process, which reports
    """

    out: Path
    options: GateOptions
    report: GateReport
    is_main: bool

    def to_json(self) -> dict[str, Any]:
        """The result as `sdrpn train --gate --json` prints it."""
        from sdrpn.gate.gate_folder import described

        report = self.report
        return {
            "out": self.out,
            "kind": self.options.kind,
            "layers": self.options.layers if self.options.kind == "layers" else 0,
            **{name: getattr(report, name) for name in ("samples", "held_out", "parameters", "steps", "seconds")},
            "loss": report.losses[-1] if report.losses else None,
            "threshold": report.after.threshold,
            "before": described(report.before),
            "after": described(report.after),
        }


def train_gate(request: GateTrainingRequest, progress: ShowProgress = show_nothing) -> TrainedGate:
    """Train a gate; the folder has it with the RPN, and `export_bundle` takes it as `rpn`.

    Every process of a launcher calls this; one of them shows progress and writes.
    Raises: BadInput and BadCheckpoint before any work is done; MissingDependency without sdrpn[train]
    """
    with importing_extra(*_EXTRA):
        from sdrpn.gate.gate_set import read_gate_labels
    labels = read_gate_labels(request.labels)
    parts = dataclasses.replace(request.checkpoint, fit="crop" if labels.about.get("fit") == "crop" else "pad")
    parts.look(*_EXTRA)
    with importing_extra(*_EXTRA):
        import accelerate  # noqa: F401
        import torch  # noqa: F401

    from sdrpn.checkpoint.rpn_file import read_rpn
    from sdrpn.gate.gate_folder import GateTraining
    from sdrpn.gate.gate_folder import train_gate as train_on_labels

    accelerator = open_accelerator(request.device)
    with parts.open() as checkpoint, torch_threads(request.threads):
        request.require_preset(checkpoint)
        asked = GateTraining(
            checkpoint,
            labels,
            request.out,
            request.options,
            request.images or labels.images,
            request.taps_dir or request.labels / "taps",
            read_rpn(Path(parts.rpn)).note if parts.rpn is not None else "",
            request.resume,
        )
        is_main = bool(accelerator.is_main_process)
        report = train_on_labels(asked, accelerator, progress if is_main else show_nothing)
    return TrainedGate(request.out, request.options, report, is_main)
