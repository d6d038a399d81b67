"""From a gate's score to whether to look again, and what a probe goes by. Arithmetic alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, RunFailed
from sdrpn.method.roi import roi_map

__all__ = ["MAP_STATISTICS", "asks_gate", "gate_refusal", "gate_score", "looks_again", "map_statistics"]

_STEPS = (0.1, 0.3, 0.5)
# What `map_statistics` gives, in order.
MAP_STATISTICS = (
    "peak",
    "mean",
    *(f"share of cells above {step:g}" for step in _STEPS),
    "height",
    "width",
    "sharpness",
)


def map_statistics(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What a probe knows of a map (h,w) of RoI logits, in the order of MAP_STATISTICS, each in 0..1.

    Height and width, as shares of the map's, are those of the box around cells above half of the peak; sharpness is the
    share of all probability that lies in these cells. A region that fires small and sharp is a small thing.
    """
    shown = roi_map(logits)
    strong = shown >= 0.5 * shown.max()
    spans = [np.ptp(np.flatnonzero(strong.any(axis=1 - axis))) + 1 for axis in (0, 1)]
    total = float(shown.sum())
    found = [
        shown.max(),
        shown.mean(),
        *((shown > step).mean() for step in _STEPS),
        *(span / side for span, side in zip(spans, shown.shape, strict=True)),
        float(shown[strong].sum()) / total if total else 0.0,
    ]
    return np.array(found, np.float32)


def gate_score(logit: float) -> float:
    """The sigmoid of a gate's logit: how likely a first look is not enough."""
    return float(roi_map(np.array([logit], np.float32))[0])


def looks_again(score: float, threshold: float) -> bool:
    """Whether the score calls for a second look; one equal to the threshold does. Raises RunFailed for none."""
    if not math.isfinite(score):
        raise RunFailed(f"the gate's score is {score}; expected a number from 0 to 1: compare the bundle")
    if not math.isfinite(threshold):
        raise BadInput(f"the gate's threshold is {threshold!r}; expected a number, below 0 for always")
    return score >= threshold


def gate_refusal(score: float | None, threshold: float) -> str | None:
    """Why the first look is enough, for the answer's note; None: look again. `score`: None where it decides nothing."""
    if threshold > 1:
        return f"nothing inserted: no score of the gate reaches {threshold:.3g}"
    if threshold < 0 or score is None or looks_again(score, threshold):
        return None
    return f"nothing inserted: the gate's score is {score:.3g}, below {threshold:.3g}"


def asks_gate(threshold: float) -> bool:
    """Whether the score decides anything: all scores are between 0 and 1."""
    return 0 <= threshold <= 1
