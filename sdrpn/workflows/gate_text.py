"""Gate labels and a trained gate as tables and lines."""

from __future__ import annotations

from collections.abc import Iterator

from sdrpn.reports.text import Part, Table, amount
from sdrpn.workflows.gate_label import GateLabelled
from sdrpn.workflows.train_gate import TrainedGate

__all__ = ["gate_labels_text", "trained_gate_text"]


def gate_labels_text(labelled: GateLabelled) -> Iterator[Part]:
    """One row per case, one per view, and where the two targets differ."""
    counts, views = labelled.counts, labelled.provenance["views"]
    rows = [*counts.cases.items(), ("not asked", counts.not_asked), ("in a balanced set", counts.balanced)]
    title = f"{labelled.out}: {amount(labelled.provenance['questions'], 'question')}"
    yield Table(title, ("case", "count"), [(name, f"{count:,}") for name, count in rows])
    yield Table("", ("view", "right"), [(view, f"{right:,}") for view, right in zip(views, counts.right, strict=True)])
    if labelled.difference is not None:
        columns = ("by the truth, by the best view", "count")
        yield Table("", columns, [(name, f"{count:,}") for name, count in labelled.difference.items()])


def trained_gate_text(trained: TrainedGate) -> Iterator[Part]:
    """The gate and its training in a line, then what it is worth on held-out questions."""
    report, options = trained.report, trained.options
    kind = "a probe" if options.kind == "probe" else f"{amount(options.layers, 'layer')}, {options.start} at the start"
    yield (
        f"{trained.out}: a gate ({kind}), {report.parameters:,} parameters, {amount(report.steps, 'step')} on "
        f"{amount(report.samples, 'question')} in {report.seconds:.0f} s"
    )
    rows = [
        (
            name,
            f"{found.loss:.4f}",
            "-" if found.auc is None else f"{found.auc:.3f}",
            f"{found.curve.gain_over_random:.4f}",
        )
        for name, found in (("before", report.before), ("after", report.after))
    ]
    columns = ("training", "held-out loss", "AUC", "gain over random")
    yield Table(f"{report.held_out:,} held-out questions", columns, rows)
    found = report.after
    yield (
        f"accuracy {found.curve.once:.1%} with one look, {found.curve.twice:.1%} with two, {found.accuracy:.1%} at the "
        f"threshold {found.threshold:.3g}, which looks twice at {found.share:.0%}"
    )
