"""What the steps of a training found, as tables and lines: heads, labels, the RPN."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.host.part import Part as ProcessPart
from sdrpn.reports.text import Part, Table, Text, amount
from sdrpn.workflows.heads import FoundHeads, Proposal
from sdrpn.workflows.train import TrainedRpn

if TYPE_CHECKING:
    from sdrpn.labels.labelling import Counts
    from sdrpn.train.loop import Validation

__all__ = ["heads_text", "labels_text", "part_text", "proposal_text", "trained_text"]

_MOST_HEADS = 20


def heads_text(found: FoundHeads) -> Text:
    """The best heads, one per row."""
    scores = found.scores
    rows = [
        (
            f"{layer}.{head}",
            f"{scores.frequency[layer, head]:.0%}",
            f"{scores.image_share[layer, head]:.3f}",
            f"{scores.entropy[layer, head]:.2f}",
            f"{scores.dependence[layer, head]:.3f}",
            "yes" if (layer, head) in found.chosen else "",
        )
        for layer, head in scores.best(_MOST_HEADS)
    ]
    columns = ("layer.head", "in top ten", "on image", "entropy", "follows question", "chosen")
    return [Table(f"{found.questions} questions", columns, rows)]


def proposal_text(proposal: Proposal) -> Text:
    """One row per training."""
    best = proposal.tap_layer, proposal.rpn_layers
    rows = [
        (
            str(trial.tap_layer),
            str(trial.rpn_layers),
            f"{trial.loss:.4f}",
            f"{trial.average_precision:.3f}",
            f"{trial.box_iou:.3f}",
            "yes" if (trial.tap_layer, trial.rpn_layers) == best else "",
        )
        for trial in proposal.trials
    ]
    columns = ("K", "T", "held-out loss", "average precision", "box IoU", "proposed")
    return [Table(f"trainings of {proposal.steps} steps", columns, rows)]


def part_text(out: Path, part: ProcessPart) -> str:
    """That a process did its part of a folder of labels, and others have yet to."""
    return f"{out}: part {part} is done, files of others are missing: the last part makes the labels"


def labels_text(counts: Counts, title: str) -> Text:
    """One row per outcome of a question."""
    rows = [(name.replace("_", " "), f"{value:,}") for name, value in dataclasses.asdict(counts).items()]
    return [Table(title, ("of the questions", "count"), rows)]


def trained_text(trained: TrainedRpn) -> Iterator[Part]:
    """The RPN and its training in a line, and one row per validation."""
    options, report = trained.options, trained.report
    history, found = report.history, report.history.validations
    yield (
        f"{trained.out}: an RPN of {amount(options.rpn_layers, 'layer')} after layer {options.tap_layer}, "
        f"{report.parameters:,} parameters, {amount(report.steps, 'step')} on {amount(report.pairs, 'pair')} in "
        f"{history.seconds:.0f} s"
    )
    if found:
        columns = ("step", "held-out loss", "average precision", "cell IoU", "box IoU", "at threshold")
        centre = found[-1].quality.centre_box_iou
        title = f"{report.held_out_pairs} held-out pairs; a box in the middle: {centre:.3f}"
        yield Table(title, columns, [_validation_row(validation) for validation in found])


def _validation_row(validation: Validation) -> tuple[str, ...]:
    quality = validation.quality
    return (
        str(validation.step),
        f"{validation.loss:.4f}",
        f"{quality.average_precision:.3f}",
        f"{quality.best.cell_iou:.3f}",
        f"{quality.best.box_iou:.3f}",
        f"{quality.best.threshold:g}",
    )
