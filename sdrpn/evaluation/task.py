"""A task: its questions, how an answer is scored, and how scores become figures. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.method.preset import Task as Preset

__all__ = ["Score", "Summarise", "Task", "category_means"]

Score = Callable[[str, Sample], float]  # answer, sample -> 0..1
# All records of one method -> named figures beside the accuracy
Summarise = Callable[[Sequence[Record]], dict[str, float]]

DEFAULT_GENERAL_QUESTION = "Write a general description of the image."


@dataclass(frozen=True)
class Task:
    """Questions with known answers.

    samples: may be made on demand.
    score: the score of one answer; the mean is the accuracy.
    metric: the usual name of that mean.
    max_new_tokens: lmms-eval's limit for this task.
    threshold: for the RoI map, from LLaVA's published evaluation; None: none was published.
    preset: the kind of question, whose figures are those of the evaluation of Qwen2.5-VL and Qwen3-VL; None: none.
    general_question: asks for nothing in particular: the baseline of `vicrop` for a question's attention.
    unlabelled: questions to find a model's attention sinks with; their answers are never read.
    summarise: further figures, such as F1.
    """

    name: str
    samples: Sequence[Sample]
    score: Score
    metric: str
    max_new_tokens: int
    threshold: float | None = None
    preset: Preset | None = None
    general_question: str = DEFAULT_GENERAL_QUESTION
    unlabelled: Sequence[Sample] = ()
    summarise: Summarise = lambda records: {}
    settings: Mapping[str, object] = field(default_factory=dict)  # the part of the data that is used

    @property
    def has_boxes(self) -> bool:
        """Whether the samples have true boxes."""
        return bool(self.samples) and bool(self.samples[0].boxes_xyxy_px)


def category_means(records: Sequence[Record]) -> dict[str, float]:
    """The mean score of every category, in order of first occurrence."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record.category and record.score is not None:
            scores.setdefault(record.category, []).append(record.score)
    return {category: fmean(values) for category, values in scores.items()}
