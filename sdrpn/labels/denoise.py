"""Clean attention into labels: foreground, background, or ignored. NumPy only; knows no model.

Attention over an image has sinks (cells with high attention for any question), a few relevant cells, and noise in
between. Sinks are removed, strong cells become foreground, weak cells away from them background, and the rest is left
out of training. Images have h x w cells.
"""

from __future__ import annotations

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
    "LabelRule",
    "PseudoLabels",
    "Sinks",
    "denoise",
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
    """

    foreground_share: float = 0.2
    background_share: float = 0.1
    largest_box_share: float = 0.5
    raw: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.background_share <= self.foreground_share < 1:
            raise BadInput(
                f"background_share is {self.background_share} and foreground_share {self.foreground_share}; "
                "expected 0 < background_share <= foreground_share < 1"
            )
        if not 0 < self.largest_box_share <= 1:
            raise BadInput(f"largest_box_share is {self.largest_box_share}; expected a number above 0, at most 1")


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


def denoise(grounding: Floats, sinks: Bool, rule: LabelRule | None = None) -> PseudoLabels:
    """Label the cells of one sample.

    Args:
        grounding: (h,w), attention of the grounding heads to the image
        sinks: (h,w), cells that are sinks
    Returns: labels on the grid; a sink outside the box is background, as in the official code.
    Raises BadInput for shapes that are not a grid, or values that are not finite.
    """
    rule = LabelRule() if rule is None else rule
    _check_attention(grounding, sinks)
    if rule.raw:
        return _raw_labels(grounding, rule.foreground_share)
    strength = np.where(sinks, 0.0, grounding)
    peak = strength.max()
    foreground = (strength > rule.foreground_share * peak) & (strength > 0)
    cells = np.full(strength.shape, IGNORED, np.int8)
    if not foreground.any():
        return PseudoLabels(cells, None)
    box = _box_around(foreground)
    x1, y1, x2, y2 = box
    if (x2 - x1) * (y2 - y1) >= rule.largest_box_share * cells.size:
        return PseudoLabels(cells, box, oversize=True)
    cells[strength < rule.background_share * peak] = BACKGROUND
    cells[y1:y2, x1:x2] = IGNORED
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


def _box_around(fired: Bool) -> Box:
    rows, columns = np.flatnonzero(fired.any(axis=1)), np.flatnonzero(fired.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
