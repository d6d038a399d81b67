"""From records to figures: one row per method, intervals, and differences between methods. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.evaluation.bootstrap import interval, resampled_means
from sdrpn.evaluation.causal import CausalResult
from sdrpn.evaluation.gate_curve import GateCurve
from sdrpn.evaluation.methods import RPN_PREFIX
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.task import Task, category_means

__all__ = ["Difference", "MethodResult", "Results", "RpnMean", "complete_records", "summarise"]

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class MethodResult:
    """The figures of one method; region means are over all questions, those without a crop counting 0.

    accuracy: mean score, in 0..1, with its interval; None where no answer was requested.
    mean_iou, contains, recall, point_in_box: None where the method has one pass or the task has no boxes.
    mean_zoom: over questions with a crop. crop_share: of questions with a crop. roi_tokens: mean.
    seconds_per_question: mean over questions that could be asked; median_seconds likewise.
    problems: questions that could not be asked. metrics: further figures of the task. categories: mean score of each.
    """

    accuracy: float | None
    accuracy_interval: Interval | None
    mean_iou: float | None
    contains: float | None
    seconds_per_question: float | None
    recall: float | None
    point_in_box: float | None
    mean_zoom: float | None
    crop_share: float
    roi_tokens: float
    median_seconds: float | None
    relative_speed: float | None  # plain's seconds over this method's
    problems: int
    metrics: dict[str, float]
    categories: dict[str, float]


@dataclass(frozen=True)
class Difference:
    """The mean score of one method minus that of another, on the same questions."""

    method: str
    baseline: str
    difference: float
    interval: Interval


@dataclass(frozen=True)
class RpnMean:
    """Several RPNs together, e.g. from several seeds: the mean of their scores for each question."""

    methods: tuple[str, ...]
    accuracy: float
    accuracy_interval: Interval
    differences: tuple[Difference, ...]  # minus every other method


@dataclass(frozen=True)
class Results:
    """The figures of a whole run.

    missing: answers that other processes have yet to give; the figures are of questions without any such.
    rpn_mean: None with fewer than two RPNs. causal, curve: None where they were not asked for, or have no questions.
    """

    task: str
    metric: str
    samples: int  # that were asked with every method
    methods: dict[str, MethodResult]
    differences: tuple[Difference, ...]
    rpn_mean: RpnMean | None
    settings: dict[str, Any]
    causal: CausalResult | None = None
    curve: GateCurve | None = None
    missing: int = 0


def summarise(task: Task, methods: Sequence[str], records: Sequence[Record], settings: dict[str, Any]) -> Results:
    """Figures over the samples that were asked with every method, in the order of `methods`."""
    by_method = complete_records(methods, records)
    scores = _scores([by_method[name] for name in methods])
    drawn = None if scores is None else resampled_means(scores)
    baseline = _mean_seconds(by_method["plain"]) if "plain" in by_method else None
    rows = {
        name: _method_result(task, by_method[name], None if drawn is None else interval(drawn[:, column]), baseline)
        for column, name in enumerate(methods)
    }
    differences: tuple[Difference, ...] = ()
    rpn_mean = None
    if scores is not None and drawn is not None:
        differences = tuple(_differences(methods, scores, drawn))
        rpn_mean = _rpn_mean(methods, scores, drawn)
    return Results(task.name, task.metric, len(by_method[methods[0]]), rows, differences, rpn_mean, dict(settings))


def _scores(by_method: Sequence[Sequence[Record]]) -> Floats | None:
    """Scores (questions, methods); None without questions, or where no answers were requested."""
    scores = [[record.score for record in records] for records in by_method]
    if not scores[0] or any(score is None for column in scores for score in column):
        return None
    return np.array(scores, np.float64).T


def complete_records(methods: Sequence[str], records: Sequence[Record]) -> dict[str, list[Record]]:
    """Method -> its records, by sample; only samples that were asked with every method."""
    asked = {(record.index, record.method): record for record in records}
    indices = sorted({record.index for record in records})
    whole = [index for index in indices if all((index, name) in asked for name in methods)]
    return {name: [asked[index, name] for index in whole] for name in methods}


def _method_result(
    task: Task, records: Sequence[Record], accuracy_interval: Interval | None, baseline_s: float | None
) -> MethodResult:
    seconds = _mean_seconds(records)
    scores = [record.score for record in records if record.score is not None]
    times = [record.seconds for record in records if record.seconds is not None]
    zooms = [record.zoom for record in records if record.zoom is not None]
    return MethodResult(
        accuracy=_mean(scores),
        accuracy_interval=accuracy_interval,
        mean_iou=_region_mean(records, "iou"),
        contains=_region_mean(records, "contains"),
        seconds_per_question=seconds,
        recall=_region_mean(records, "recall"),
        point_in_box=_region_mean(records, "point_in_box"),
        mean_zoom=_mean(zooms),
        crop_share=len(zooms) / max(1, len(records)),
        roi_tokens=_mean([record.roi_tokens for record in records]) or 0.0,
        median_seconds=float(np.median(times)) if times else None,
        relative_speed=baseline_s / seconds if baseline_s and seconds else None,
        problems=sum(record.problem is not None for record in records),
        metrics=task.summarise(records) if scores else {},
        categories=category_means(records),
    )


def _mean_seconds(records: Sequence[Record]) -> float | None:
    return _mean([record.seconds for record in records if record.seconds is not None])


def _region_mean(records: Sequence[Record], name: str) -> float | None:
    """The mean of a region figure; None where no record has it."""
    values = [getattr(record, name) for record in records]
    if all(value is None for value in values):
        return None
    return fmean(float(value or 0) for value in values)


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _differences(methods: Sequence[str], scores: Floats, drawn: Floats) -> list[Difference]:
    """The differences of all pairs, later method minus earlier."""
    pairs = [(late, early) for late in range(len(methods)) for early in range(late)]
    means = scores.mean(axis=0)
    return [
        Difference(
            methods[late], methods[early], float(means[late] - means[early]), interval(drawn[:, late] - drawn[:, early])
        )
        for late, early in pairs
    ]


def _rpn_mean(methods: Sequence[str], scores: Floats, drawn: Floats) -> RpnMean | None:
    """The mean of all RPNs, on the same resamples of questions; RPNs are not resampled, being few."""
    rpns = [column for column, name in enumerate(methods) if name == "sdrpn" or name.startswith(RPN_PREFIX)]
    if len(rpns) < 2:
        return None
    mean, drawn_mean = float(scores[:, rpns].mean()), drawn[:, rpns].mean(axis=1)
    name = f"mean of {len(rpns)} RPNs"
    differences = tuple(
        Difference(name, methods[other], mean - float(scores[:, other].mean()), interval(drawn_mean - drawn[:, other]))
        for other in range(len(methods))
        if other not in rpns
    )
    return RpnMean(tuple(methods[column] for column in rpns), mean, interval(drawn_mean), differences)
