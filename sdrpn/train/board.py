"""Training curves: for TensorBoard while it runs, and precision over recall as a picture. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdrpn.host.atomic import replacing_file
from sdrpn.train.loop import Step, Validation
from sdrpn.train.proposal import Trial

__all__ = ["Board", "draw_curves", "draw_trials"]

FOLDER = "tensorboard"


class Board:
    """Writes scalars for TensorBoard; nothing where the folder is None."""

    def __init__(self, out: Path | None, first_step: int) -> None:
        """Entries of an interrupted training beyond `first_step` are dropped."""
        if out is None:
            self._writer = None
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(out / FOLDER, purge_step=first_step or None)

    def add_step(self, step: Step) -> None:
        """Add loss, learning rate and the gradient norm before clipping."""
        for name in ("loss", "learning_rate", "gradient_norm"):
            self._add(f"train/{name}", getattr(step, name), step.number)

    def add_validation(self, found: Validation) -> None:
        """Add the results on held-out labels."""
        best = found.quality.best
        self._add("held_out/loss", found.loss, found.step)
        self._add("held_out/average_precision", found.quality.average_precision, found.step)
        self._add("held_out/cell_iou", best.cell_iou, found.step)
        self._add("held_out/box_iou", best.box_iou, found.step)

    def close(self) -> None:
        """Write buffered entries."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(name, value, step)


def draw_curves(path: Path, first: Validation, last: Validation) -> None:
    """Write a PNG with precision over recall, before the first step and after the last."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for found in (first, last):
        recall, precision = zip(*found.quality.curve, strict=True)
        label = f"step {found.step}: average precision {found.quality.average_precision:.3f}"
        axes.plot(recall, precision, label=label)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title="Cells of held-out labels")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def draw_trials(path: Path, trials: Sequence[Trial], chosen: Trial) -> None:
    """Write a PNG with the average precision of short trainings over the tap layer, one line per RPN size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    for rpn_layers in sorted({trial.rpn_layers for trial in trials}):
        line = [trial for trial in trials if trial.rpn_layers == rpn_layers]
        axes.plot(
            [trial.tap_layer for trial in line],
            [trial.average_precision for trial in line],
            marker="o",
            label=f"T = {rpn_layers}",
        )
    axes.plot(chosen.tap_layer, chosen.average_precision, "o", ms=14, mfc="none", mec="black", label="proposed")
    axes.set(xlabel="K, layers below the tap", ylabel="average precision", title="Short trainings, held-out labels")
    axes.legend()
    axes.grid(alpha=0.3)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
