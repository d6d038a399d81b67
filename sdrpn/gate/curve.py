"""What a gate gains at every threshold: what is looked at twice, and how many answers are right. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput

__all__ = ["GateCurve", "Point", "area_under_roc", "gate_curve"]

Floats = npt.NDArray[np.floating[Any]]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Point:
    """One threshold: scores at it and above look again."""

    threshold: float
    share: float  # of the questions that are looked at twice
    accuracy: float


@dataclass(frozen=True)
class GateCurve:
    """From always looking once (the first point) to always looking twice (the last)."""

    points: tuple[Point, ...]

    @property
    def once(self) -> float:
        """The accuracy of one look."""
        return self.points[0].accuracy

    @property
    def twice(self) -> float:
        """The accuracy of two looks."""
        return self.points[-1].accuracy

    def at(self, threshold: float) -> Point:
        """What this threshold gives."""
        return max((point for point in self.points if point.threshold >= threshold), key=lambda point: point.share)

    def cheapest_within(self, loss: float) -> Point:
        """The smallest share whose accuracy is at most `loss` below that of always looking twice."""
        return min(
            (point for point in self.points if point.accuracy >= self.twice - loss),
            key=lambda point: (point.share, -point.accuracy),
        )

    @property
    def gain_over_random(self) -> float:
        """Mean accuracy above a gate that draws the same share at random, over all shares."""
        shares = np.array([point.share for point in self.points])
        above = np.array([point.accuracy for point in self.points]) - (self.once + (self.twice - self.once) * shares)
        return float(np.sum(0.5 * (above[1:] + above[:-1]) * np.diff(shares)))


def gate_curve(scores: Floats, once: Bool, twice: Bool) -> GateCurve:
    """The curve of a gate over questions.

    Args: scores, once, twice: (n,) the gate's score, and whether one look and two looks answer it right
    Raises: BadInput for none, or scores that are not finite
    """
    if not len(scores) or not len(scores) == len(once) == len(twice):
        raise BadInput(f"{len(scores)} scores for {len(once)} and {len(twice)} answers; expected as many, one at least")
    if not np.isfinite(scores).all():
        raise BadInput("a gate's score is not finite; expected numbers from 0 to 1")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    gained = np.cumsum(twice[order].astype(np.int64) - once[order])
    count, base = len(scores), int(once.sum())
    points = [Point(_above(ranked[0], 1.0), 0.0, base / count)]
    for index in range(count):
        if index + 1 < count and ranked[index + 1] == ranked[index]:
            continue  # equal scores are decided alike
        below = ranked[index + 1] if index + 1 < count else 0.0
        points.append(
            Point(float((ranked[index] + below) / 2), (index + 1) / count, (base + int(gained[index])) / count)
        )
    return GateCurve(tuple(points))


def area_under_roc(scores: Floats, labels: Bool) -> float | None:
    """How likely a question that needs a second look scores above one that does not; None where one kind is missing."""
    positive, negative = scores[labels], scores[~labels]
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    equal = np.searchsorted(ordered, positive, "right") - below
    return float((below + 0.5 * equal).sum() / (len(positive) * len(negative)))


def _above(score: float, limit: float) -> float:
    """A threshold that no score reaches."""
    return float(max(limit, score)) if score < limit else float(np.nextafter(score, np.inf))


def thinned(curve: GateCurve, most: int) -> Sequence[Point]:
    """At most so many points, the ends among them."""
    if len(curve.points) <= most:
        return curve.points
    chosen = np.linspace(0, len(curve.points) - 1, most).round().astype(int)
    return [curve.points[index] for index in dict.fromkeys(chosen.tolist())]
