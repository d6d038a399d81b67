"""From a gate's score to whether to look again. Arithmetic alone."""

from __future__ import annotations

import math

import numpy as np

from sdrpn.errors import BadInput, RunFailed
from sdrpn.method.roi import roi_map

__all__ = ["asks_gate", "gate_score", "looks_again"]


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


def asks_gate(threshold: float) -> bool:
    """Whether the score decides anything: all scores are between 0 and 1."""
    return 0 <= threshold <= 1
