"""Accuracy over mean time and over tokens, from one look to always two, for every threshold. Knows no model.

Every question was answered with one look and with two, so that what any threshold would give is known: a question whose
score is below it counts as it was answered with one look. What judges it costs its time in every question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdrpn.evaluation.bootstrap import interval, resampled_means
from sdrpn.evaluation.records import Record

__all__ = ["CurvePoint", "GateCurve", "JudgeCurve", "OwnGate", "curve_methods", "gate_curve"]

Interval = tuple[float, float]
Judge = Literal["gate", "probe", "confidence"]
Floats = NDArray[np.float64]
Bool = NDArray[np.bool_]

MOST_THRESHOLDS = 100  # of one curve; more scores than that are thinned out evenly


@dataclass(frozen=True)
class CurvePoint:
    """What one rule gives.

    name: the rule. threshold: scores from it on are looked at twice; None for a rule without one.
    looked_twice: share of the questions. seconds, tokens: mean per question; of the picture and its crops.
    over_random: accuracy minus the mean accuracy of as many questions chosen by lot, and its interval; None for a rule
        that chooses nothing. over_random_in_time: minus that of as many as the same seconds are enough for, since a
        lot costs no time.
    """

    name: str
    threshold: float | None
    looked_twice: float
    accuracy: float
    interval: Interval
    seconds: float
    tokens: float
    over_random: float | None = None
    over_random_interval: Interval | None = None
    over_random_in_time: float | None = None
    over_random_in_time_interval: Interval | None = None


@dataclass(frozen=True)
class JudgeCurve:
    """All thresholds of one score.

    judge: "gate"; "probe", a gate that needs the map; or "confidence", the strongest cell of the map.
    points: by rising threshold.
    auc: the chance that a question that a second look improves has a higher score than another one; None where there
        are none of one of the two.
    """

    judge: Judge
    points: tuple[CurvePoint, ...]
    auc: float | None


@dataclass(frozen=True)
class OwnGate:
    """The model's own threshold. over_always: accuracy minus that of two looks. time_share: seconds over theirs."""

    point: CurvePoint
    over_always: float
    over_always_interval: Interval
    time_share: float
    time_share_interval: Interval


@dataclass(frozen=True)
class GateCurve:
    """Rules without a score, a curve for every score, and the model's own gate.

    questions: those that could be asked with every method
    fixed: `plain`; two looks at every question; `oracle-gate`: two looks where they score higher, which no gate can
        exceed; `oracle-crop`: the second look at the true boxes
    own: None for a model without a gate
    """

    questions: int
    fixed: tuple[CurvePoint, ...]
    curves: tuple[JudgeCurve, ...]
    own: OwnGate | None


def curve_methods(*, gate: bool, boxes: bool) -> tuple[str, ...]:
    """The methods that a `GateCurve` needs. Args: gate, boxes: whether the model, and the task, has them"""
    return ("plain", *(("always",) if gate else ()), "sdrpn", *(("oracle-crop",) if boxes else ()))


def gate_curve(
    by_method: Mapping[str, Sequence[Record]], own_threshold: float | None, *, probe: bool = False
) -> GateCurve | None:
    """The curve from the records of `curve_methods`, of the same questions in the same order.

    None where no question could be asked with every method, or without answers.

    Args:
        own_threshold: of the model's gate; None: it has none
        probe: whether the gate needs the map
    """
    twice = "always" if "always" in by_method else "sdrpn"
    names = ["plain", twice, *(name for name in ("oracle-crop",) if name in by_method)]
    rows = [
        row
        for row in zip(*(by_method[name] for name in names), strict=True)
        if all(record.seconds is not None and record.score is not None for record in row)
    ]
    if not rows:
        return None
    plain, two, *oracles = ([row[column] for row in rows] for column in range(len(names)))
    looks = _Looks(_outcomes(plain), _outcomes(two) - _outcomes_of_judging(two))
    never, better = np.zeros(len(rows), np.bool_), looks.two[:, 0] > looks.one[:, 0]
    fixed = looks.points([_Choice("plain", never), _Choice(twice, ~never), _Choice("oracle-gate", better)])
    for name, oracle in zip(names[2:], oracles, strict=True):
        fixed += _Looks(looks.one, _outcomes(oracle)).points([_Choice(name, ~never)])
    gate: Judge = "probe" if probe else "gate"
    judges: tuple[Judge, ...] = (gate, "confidence")
    curves = [_curve(looks, judge, two) for judge in judges if _scores(two, judge) is not None]
    own = None if own_threshold is None or _scores(two, gate) is None else _own(looks, two, gate, own_threshold)
    return GateCurve(len(rows), fixed, tuple(curves), own)


@dataclass(frozen=True, eq=False)
class _Choice:
    """Which questions are looked at twice, (questions,), and the seconds that a judgement adds to each."""

    name: str
    twice: Bool
    threshold: float | None = None
    judging_s: Floats | None = None


@dataclass(frozen=True, eq=False)
class _Looks:
    """Score, seconds and tokens (questions, 3) with one look and with two, without what a gate takes."""

    one: Floats
    two: Floats

    def chosen(self, twice: Bool, judging_s: Floats | None = None) -> Floats:
        """(questions, 3) with two looks where `twice`. judging_s: seconds that are spent before one look is enough."""
        found = np.where(twice[:, None], self.two, self.one)
        if judging_s is not None:
            found[:, 1] += judging_s
        return found

    def points(self, choices: Sequence[_Choice]) -> tuple[CurvePoint, ...]:
        """The figures of choices, on the same resamples of questions."""
        found = [self.chosen(choice.twice, choice.judging_s) for choice in choices]
        scores = np.stack([outcome[:, 0] for outcome in found], axis=1)
        # By lot, each question is looked at twice with the same probability: its mean score is known.
        shares = np.array([choice.twice.mean() for choice in choices])
        over = scores - self._by_lot(shares)
        seconds = np.array([outcome[:, 1].mean() for outcome in found])
        over_in_time = scores - self._by_lot(self._shares_in(seconds))
        count, drawn = len(choices), resampled_means(np.concatenate([scores, over, over_in_time], axis=1))
        return tuple(
            CurvePoint(
                name=choice.name,
                threshold=choice.threshold,
                looked_twice=float(shares[number]),
                accuracy=float(scores[:, number].mean()),
                interval=interval(drawn[:, number]),
                seconds=float(seconds[number]),
                tokens=float(outcome[:, 2].mean()),
                over_random=None if choice.threshold is None else float(over[:, number].mean()),
                over_random_interval=None if choice.threshold is None else interval(drawn[:, count + number]),
                over_random_in_time=None if choice.threshold is None else float(over_in_time[:, number].mean()),
                over_random_in_time_interval=(
                    None if choice.threshold is None else interval(drawn[:, 2 * count + number])
                ),
            )
            for number, (choice, outcome) in enumerate(zip(choices, found, strict=True))
        )

    def _by_lot(self, shares: Floats) -> Floats:
        """(questions, M): the mean score of each question, looked at twice with each of these probabilities."""
        scores: Floats = self.one[:, :1] * (1 - shares) + self.two[:, :1] * shares
        return scores

    def _shares_in(self, seconds: Floats) -> Floats:
        """(M,): of how many questions such mean seconds are enough for two looks, without any judgement."""
        one_s, two_s = self.one[:, 1].mean(), self.two[:, 1].mean()
        if two_s <= one_s:
            return np.ones_like(seconds)
        shares: Floats = np.clip((seconds - one_s) / (two_s - one_s), 0, 1)
        return shares


def _outcomes(records: Sequence[Record]) -> Floats:
    """(questions, 3): score, seconds, tokens."""
    return np.array([(record.score, record.seconds, record.image_tokens + record.roi_tokens) for record in records])


def _outcomes_of_judging(records: Sequence[Record]) -> Floats:
    """(questions, 3): what the gate added to the seconds."""
    return np.array([(0.0, record.gate_s or 0.0, 0.0) for record in records])


def _scores(records: Sequence[Record], judge: Judge) -> Floats | None:
    """The scores of all questions; None where one has none."""
    found = [record.confidence if judge == "confidence" else record.gate_score for record in records]
    return None if any(score is None for score in found) else np.array(found, np.float64)


def _judging_s(records: Sequence[Record], judge: Judge, twice: Bool) -> Floats:
    """Seconds for the judgement. The map is part of a second look, so that it adds to one look only."""
    gate_s, map_s = (np.array([getattr(record, name) or 0.0 for record in records]) for name in ("gate_s", "map_s"))
    if judge == "gate":
        return gate_s
    return map_s * ~twice + (gate_s if judge == "probe" else 0.0)


def _curve(looks: _Looks, judge: Judge, two: Sequence[Record]) -> JudgeCurve:
    scores = _scores(two, judge)
    assert scores is not None
    limits = _thresholds(scores)
    points = looks.points([_choice(judge, two, scores, limit) for limit in limits])
    return JudgeCurve(judge, points, _auc(scores, looks.two[:, 0] > looks.one[:, 0]))


def _choice(judge: Judge, two: Sequence[Record], scores: Floats, threshold: float) -> _Choice:
    twice = scores >= threshold
    return _Choice(judge, twice, threshold, _judging_s(two, judge, twice))


def _thresholds(scores: Floats) -> list[float]:
    """Every score, or evenly many of them: each is the least score that is still looked at twice."""
    distinct = np.unique(scores)
    if len(distinct) > MOST_THRESHOLDS:
        distinct = distinct[np.unique(np.linspace(0, len(distinct) - 1, MOST_THRESHOLDS).round().astype(int))]
    return [float(score) for score in distinct]


def _auc(scores: Floats, positive: Bool) -> float | None:
    """The chance that a positive has a higher score than a negative; ties count half."""
    high, low = scores[positive], np.sort(scores[~positive])
    if not len(high) or not len(low):
        return None
    below = np.searchsorted(low, high, side="left") + np.searchsorted(low, high, side="right")
    return float(below.mean() / 2 / len(low))


def _own(looks: _Looks, two: Sequence[Record], gate: Judge, threshold: float) -> OwnGate:
    scores = _scores(two, gate)
    assert scores is not None
    choice = _choice(gate, two, scores, threshold)
    pairs = np.concatenate([looks.chosen(choice.twice, choice.judging_s)[:, :2], looks.two[:, :2]], axis=1)
    (point,), means, drawn = looks.points([choice]), pairs.mean(axis=0), resampled_means(pairs)
    return OwnGate(
        point=point,
        over_always=float(means[0] - means[2]),
        over_always_interval=interval(drawn[:, 0] - drawn[:, 2]),
        time_share=float(means[1] / means[3]),
        time_share_interval=interval(drawn[:, 1] / drawn[:, 3]),
    )
