"""A gate's curve as a picture: accuracy over the share of questions that are looked at twice. Knows no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.host.atomic import replacing_file

if TYPE_CHECKING:
    from sdrpn.gate.gate_folder import GateValidation

__all__ = ["draw_curve"]


def draw_curve(path: Path, found: GateValidation) -> None:
    """Write a PNG: the gate, a gate that draws at random, and the chosen threshold."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes, points = figure.add_subplot(), found.curve.points
    axes.plot([point.share for point in points], [point.accuracy for point in points], label="the gate")
    axes.plot([0, 1], [found.curve.once, found.curve.twice], "--", color="grey", label="at random")
    axes.plot(found.share, found.accuracy, "o", ms=9, mfc="none", mec="black", label=f"at {found.threshold:.3g}")
    axes.set(xlabel="share looked at twice", ylabel="accuracy", xlim=(0, 1), title="Held-out questions")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
