"""Is it the crop's content that answers? The same tokens with other pixels, question by question. Knows no model.

The first look, the crop's place and the number of its tokens are the same in all of these; only what the crop shows
differs. Right and wrong are compared in 2 x 2 tables; the intervals are those of a paired bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from sdrpn.evaluation.bootstrap import interval, resampled_means
from sdrpn.evaluation.records import Record

__all__ = ["CONTROLS", "CausalArm", "CausalResult", "PairTable", "causal_methods", "causal_result", "exact_mcnemar"]

Interval = tuple[float, float]
# What the crop shows instead, from most of the truth to least.
CONTROLS = ("crop-lowres", "crop-swapped", "crop-blank")
RIGHT = 0.5  # the least score of an answer that counts as right


@dataclass(frozen=True)
class CausalArm:
    """One content of the crop.

    accuracy: mean score. gap_closed: the share of the distance from `plain` to the true boxes (`oracle-crop`) that it
        covers; None without true boxes, or where they gain nothing.
    other_accuracy: mean score as an answer to the question whose crop is shown instead; None of all others.
    """

    method: str
    accuracy: float
    interval: Interval
    gap_closed: float | None
    gap_interval: Interval | None
    other_accuracy: float | None = None


@dataclass(frozen=True)
class PairTable:
    """The true crop and another content of it, on the same questions: right (a score of at least 0.5) or wrong.

    both, only_true, only_control, neither: numbers of questions
    difference: mean score with the true crop minus that with the control, with its interval
    p_value: of the exact McNemar test, two-sided: how likely so uneven a split of the questions that only one of the
        two answers is, were it decided by a coin
    """

    control: str
    both: int
    only_true: int
    only_control: int
    neither: int
    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True)
class CausalResult:
    """What the crop's content is worth.

    crop: the method with the true crop. questions: all that were asked. with_crop: those with one; in all others the
        methods see the same.
    gap: accuracy of `oracle-crop` minus that of `plain`; None without true boxes.
    arms: `plain`, the true crop, and the controls. tables: the true crop against `plain` and against each control.
    """

    crop: str
    questions: int
    with_crop: int
    gap: float | None
    gap_interval: Interval | None
    arms: tuple[CausalArm, ...]
    tables: tuple[PairTable, ...]


def causal_methods(*, gate: bool, boxes: bool) -> tuple[str, ...]:
    """The methods that a `CausalResult` needs. Args: gate, boxes: whether the model, and the task, has them"""
    return ("plain", "always" if gate else "sdrpn", *CONTROLS, *(("oracle-crop",) if boxes else ()))


def causal_result(by_method: Mapping[str, Sequence[Record]]) -> CausalResult | None:
    """Compare the methods of `causal_methods`, whose records are of the same questions in the same order.

    None without any question, or without answers.
    """
    crop = "always" if "always" in by_method else "sdrpn"
    arms = [name for name in ("plain", crop, *CONTROLS) if name in by_method]
    names = [*arms, *(name for name in ("oracle-crop",) if name in by_method)]
    columns = [[record.score for record in by_method[name]] for name in names]
    if not columns[0] or any(score is None for column in columns for score in column):
        return None
    scores = np.array(columns, np.float64).T
    drawn = resampled_means(scores)
    gap = scores.mean(axis=0)[-1] - scores.mean(axis=0)[0] if names[-1] == "oracle-crop" else None
    true = names.index(crop)
    return CausalResult(
        crop=crop,
        questions=len(scores),
        with_crop=sum(record.roi_tokens > 0 for record in by_method[crop]),
        gap=None if gap is None else float(gap),
        gap_interval=None if gap is None else interval(drawn[:, -1] - drawn[:, 0]),
        arms=tuple(_arm(name, by_method[name], scores, drawn, column, gap) for column, name in enumerate(arms)),
        tables=tuple(_table(name, scores, drawn, true, column) for column, name in enumerate(arms) if column != true),
    )


def exact_mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value that both numbers of discordant pairs have the same chance (binomial with one half)."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, float(2 * sum(comb(count, number) for number in range(fewer + 1)) / 2**count))


def _arm(
    name: str,
    records: Sequence[Record],
    scores: NDArray[np.float64],
    drawn: NDArray[np.float64],
    column: int,
    gap: float | None,
) -> CausalArm:
    means = scores.mean(axis=0)
    others = [record.other_score for record in records if record.other_score is not None]
    closed, ends = None, None
    if gap is not None and gap > 0:
        closed = float((means[column] - means[0]) / gap)
        gaps = drawn[:, -1] - drawn[:, 0]
        usable = gaps > 0  # few questions may draw none that the crop answers
        ends = interval((drawn[usable, column] - drawn[usable, 0]) / gaps[usable])
    other = float(np.mean(others)) if others else None
    return CausalArm(name, float(means[column]), interval(drawn[:, column]), closed, ends, other)


def _table(name: str, scores: NDArray[np.float64], drawn: NDArray[np.float64], true: int, control: int) -> PairTable:
    right, other = scores[:, true] >= RIGHT, scores[:, control] >= RIGHT
    only_true, only_control = int((right & ~other).sum()), int((~right & other).sum())
    difference = float(scores[:, true].mean() - scores[:, control].mean())
    return PairTable(
        control=name,
        both=int((right & other).sum()),
        only_true=only_true,
        only_control=only_control,
        neither=int((~right & ~other).sum()),
        difference=difference,
        interval=interval(drawn[:, true] - drawn[:, control]),
        p_value=exact_mcnemar(only_true, only_control),
    )
