"""Clean attention into labels: foreground, background, or ignored. NumPy only; knows no model.

Attention over an image has sinks (cells with high attention for any question), a few relevant cells, and noise in
between. Sinks are removed, strong cells become foreground, weak cells away from them background, and the rest is left
out of training. Images have h x w cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.method.grids import Box, cell_count

__all__ = [
    "BACKGROUND",
    "FOREGROUND",
    "IGNORED",
    "RULES",
    "LabelRule",
    "PseudoLabels",
    "Sinks",
    "denoise",
    "rule_named",
    "sinks_by_grid",
    "sinks_on",
    "usual_sinks",
]

Floats = npt.NDArray[np.floating[Any]]
Bool = npt.NDArray[np.bool_]
Int8 = npt.NDArray[np.int8]

Sinks: TypeAlias = Mapping[tuple[int, int], Bool]  # (h,w) of a grid -> (h*w,)

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -100

LEAST_QUESTIONS = 16  # about pictures of one grid among several, from which on its usual sinks are known
# Without sink heads: the ratio to the mean over the image, in the median question.
USUAL_SINK_RATIO = 10.0


@dataclass(frozen=True)
class LabelRule:
    """The thresholds, as shares of the strongest cell that is not a sink; the defaults are the official ones.

    foreground_share: stronger cells are foreground
    background_share: weaker cells outside the foreground's box are background
    largest_box_share: a box of this share of the grid or more is uninformative: the sample is ignored
    raw: no cleaning at all, for comparison: sinks count, and every cell that is not foreground is background
    box_margin: cells by which the box is larger than the foreground, on each side
    least_peak: attention of the strongest cell, below which a sample is uninformative
    padding_is_background: cells that show nothing but padding are background, whatever attends to them
    sink_limit: attention of the sink heads from which on a cell is a sink; None: the usual one of the model's family
    """

    foreground_share: float = 0.2
    background_share: float = 0.1
    largest_box_share: float = 0.5
    raw: bool = False
    box_margin: int = 0
    least_peak: float = 0.0
    padding_is_background: bool = False
    sink_limit: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.background_share <= self.foreground_share < 1:
            raise BadInput(
                f"background_share is {self.background_share} and foreground_share {self.foreground_share}; "
                "expected 0 < background_share <= foreground_share < 1",
                options=("background_share", "foreground_share"),
            )
        if not 0 < self.largest_box_share <= 1:
            raise BadInput(
                f"largest_box_share is {self.largest_box_share}; expected a number above 0, at most 1",
                options=("largest_box_share",),
            )
        if self.box_margin < 0 or not 0 <= self.least_peak < 1:
            raise BadInput(f"box_margin is {self.box_margin} and least_peak {self.least_peak}; expected none below 0")

    def to_json(self) -> dict[str, Any]:
        """For provenance. Entries that older releases did not know are left out where they change nothing."""
        known = ("foreground_share", "background_share", "largest_box_share", "raw")
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name in known or getattr(self, field.name) != field.default
        }


_MARGIN = LabelRule(box_margin=1, least_peak=5e-3, padding_is_background=True, sink_limit=1e-3)
# The official rules: SD-RPN's for LLaVA-1.5 and for models with grids of any shape, and Q-Zoom's.
RULES: Mapping[str, LabelRule] = {
    "sd-rpn": LabelRule(),
    "sd-rpn-margin": _MARGIN,
    "q-zoom": dataclasses.replace(_MARGIN, foreground_share=0.25, background_share=0.05, sink_limit=1e-2),
}


def rule_named(name: str) -> LabelRule:
    """One of `RULES`. Raises BadInput for an unknown name."""
    if name not in RULES:
        raise BadInput(f"the rule {name!r} is unknown; expected {', '.join(RULES)}")
    return RULES[name]


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Labels of one sample. In an unusable sample every cell is ignored."""

    cells: Int8  # (h,w): FOREGROUND, BACKGROUND or IGNORED
    box_cells: Box | None  # x1, y1, x2, y2 around the foreground, upper bounds exclusive; None: no foreground
    oversize: bool = False

    @property
    def usable(self) -> bool:
        """Whether any cell is labelled."""
        return bool((self.cells != IGNORED).any())


def denoise(
    grounding: Floats, sinks: Bool, rule: LabelRule | None = None, picture_cells: Box | None = None
) -> PseudoLabels:
    """Label the cells of one sample.

    Args:
        grounding: (h,w), attention of the grounding heads to the image
        sinks: (h,w), cells that are sinks
        picture_cells: cells that show any of the picture, where it was padded; None: all do
    Returns: labels on the grid; a sink outside the box is background, as in the official code.
    Raises BadInput for shapes that are not a grid, or values that are not finite.
    """
    rule = LabelRule() if rule is None else rule
    _check_attention(grounding, sinks)
    if rule.raw:
        return _raw_labels(grounding, rule.foreground_share)
    outside = np.zeros(grounding.shape, np.bool_)
    if rule.padding_is_background and picture_cells is not None:
        outside[:] = True
        outside[_slices(picture_cells)] = False
    strength = np.where(sinks | outside, 0.0, grounding)
    peak = strength.max()
    foreground = (strength > rule.foreground_share * peak) & (strength > 0)
    cells = np.full(strength.shape, IGNORED, np.int8)
    if not foreground.any() or peak < rule.least_peak:
        return PseudoLabels(cells, None)
    box = x1, y1, x2, y2 = _grown(_box_around(foreground), rule.box_margin, cells.shape)
    if (x2 - x1) * (y2 - y1) >= rule.largest_box_share * cells.size:
        return PseudoLabels(cells, box, oversize=True)
    # Outside the picture only sinks do not count: what attends to padding is background anyway.
    cells[np.where(sinks, 0.0, grounding) < rule.background_share * peak] = BACKGROUND
    cells[_slices(box)] = IGNORED
    cells[outside] = BACKGROUND
    cells[foreground] = FOREGROUND
    return PseudoLabels(cells, box)


def _raw_labels(strength: Floats, foreground_share: float) -> PseudoLabels:
    foreground = (strength > foreground_share * strength.max()) & (strength > 0)
    if not foreground.any():
        return PseudoLabels(np.full(strength.shape, IGNORED, np.int8), None)
    return PseudoLabels(np.where(foreground, FOREGROUND, BACKGROUND).astype(np.int8), _box_around(foreground))


def usual_sinks(attention: Floats, ratio: float = USUAL_SINK_RATIO) -> Bool:
    """Sinks (C,) among h*w cells: those with high attention in most questions.

    Args:
        attention: (questions, C); each question is divided by its own mean over the image, because answers differ in
            their total attention to the image
        ratio: a sink's median exceeds the mean by this factor
    """
    if attention.ndim != 2 or len(attention) == 0:
        raise BadInput(f"attention has the shape {attention.shape}; expected (questions, cells), one question or more")
    means = attention.mean(axis=1, keepdims=True)
    relative = np.divide(attention, means, out=np.zeros_like(attention), where=means > 0)
    sinks: Bool = np.median(relative, axis=0) > ratio
    return sinks


def sinks_by_grid(attention: Iterable[tuple[tuple[int, int], Floats]]) -> Sinks:
    """The usual sinks of every grid (h,w), from the attention (C,) of questions about pictures of it.

    Where pictures have several grids, nothing is known of those of few questions: what is asked for is strong in most
    of these, too.
    """
    found: dict[tuple[int, int], list[Floats]] = {}
    for hw, cells in attention:
        found.setdefault(hw, []).append(cells)
    enough = 1 if len(found) == 1 else LEAST_QUESTIONS
    return {hw: usual_sinks(np.stack(cells)) for hw, cells in found.items() if len(cells) >= enough}


def sinks_on(sinks: Sinks, hw: tuple[int, int]) -> Bool:
    """(C,): those of a grid; none where nothing is known of it."""
    return sinks.get(hw, np.zeros(cell_count(hw), np.bool_))


def _check_attention(grounding: Floats, sinks: Bool) -> None:
    if grounding.ndim != 2 or grounding.size == 0 or sinks.shape != grounding.shape:
        raise BadInput(f"attention has the shape {grounding.shape} and sinks {sinks.shape}; expected one (h, w)")
    if not np.isfinite(grounding).all():
        raise BadInput("attention has values that are not finite; expected softmax weights: try another precision")


def _grown(box: Box, margin: int, hw: tuple[int, ...]) -> Box:
    x1, y1, x2, y2 = box
    return max(0, x1 - margin), max(0, y1 - margin), min(hw[1], x2 + margin), min(hw[0], y2 + margin)


def _slices(box: Box) -> tuple[slice, slice]:
    x1, y1, x2, y2 = box
    return slice(y1, y2), slice(x1, x2)


def _box_around(fired: Bool) -> Box:
    rows, columns = np.flatnonzero(fired.any(axis=1)), np.flatnonzero(fired.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
