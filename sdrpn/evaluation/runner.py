"""Ask every question with every method and record the results. Knows no library and no file format.

Methods alternate question by question, and the first one rotates, so that other load on the machine affects all of
them equally.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrpn.errors import BadImage, ContextTooLong
from sdrpn.evaluation.looks import Answerer
from sdrpn.evaluation.methods import EvaluationQuestion, LookPlan, Setting, plan_method
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.region import mean_zoom, region_quality
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.task import Task
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.progress import Advance, unseen
from sdrpn.method.grids import cell_count
from sdrpn.method.roi import Crop

__all__ = ["run_methods"]

WARM_UP_WH = (256, 256)


def run_methods(
    task: Task,
    answerer: Answerer,
    methods: Sequence[str],
    setting: Setting,
    *,
    answers: bool = True,
    done: Collection[tuple[int, str]] = (),
    part: Part = WHOLE,
    progress: Advance = unseen,
) -> Iterator[Record]:
    """Yield the records one by one.

    Args:
        methods: names accepted by `methods_for`
        answers: False: only choose crops, to measure how well they fit
        done: (sample index, method) pairs to skip
        part: which samples are asked here
    A picture that cannot be read or a prompt that does not fit becomes a record with a problem.
    """
    owned = [index for index in range(len(task.samples)) if part.owns(index)]
    finished, total = sum(part.owns(index) for index, _ in done), len(owned) * len(methods)
    if finished < total:
        _warm_up(task, answerer)
    for index in owned:
        turn = index % len(methods)
        missing = [name for name in (*methods[turn:], *methods[:turn]) if (index, name) not in done]
        if not missing:
            continue
        opened = _Opened(task, index)
        for name in missing:
            yield _ask(task, answerer, setting, opened, name, answers=answers)
            finished += 1
            progress(finished, total)


class _Opened:
    """A sample; its pictures are opened when they are needed."""

    def __init__(self, task: Task, index: int) -> None:
        self.index = index
        self.sample: Sample = task.samples[index]
        self._task = task
        self.proposed: dict[bool, tuple[Crop, ...]] = {}

    @cached_property
    def picture(self) -> Image.Image:
        """The picture. Raises BadImage at every call."""
        return self.sample.open_picture()

    @cached_property
    def _before(self) -> tuple[Sample, Image.Image]:
        # Before the first sample comes the last; a task with one question has only that.
        sample = self._task.samples[self.index - 1]
        return sample, sample.open_picture()

    def as_question(self, answerer: Answerer, setting: Setting) -> EvaluationQuestion:
        """The sample as methods see it. Raises BadImage."""
        return EvaluationQuestion(self.index, self.sample, self.picture, self.before, answerer, setting, self.proposed)

    def before(self) -> tuple[Sample, Image.Image]:
        """The previous sample and its picture."""
        return self._before


def _warm_up(task: Task, answerer: Answerer) -> None:
    """Ask one question so that one-time costs of libraries are not measured."""
    if len(task.samples):
        picture = Image.new("RGB", WARM_UP_WH)
        answerer.answer(picture, task.samples[0].question, None, 1)


def _ask(task: Task, answerer: Answerer, setting: Setting, opened: _Opened, name: str, *, answers: bool) -> Record:
    sample = opened.sample
    record = Record(
        index=opened.index,
        id=sample.id,
        method=name,
        question=sample.question,
        truths=sample.answers,
        category=sample.category,
        details=dict(sample.details),
        answer="",
        score=0.0 if answers else None,
    )
    limit = task.max_new_tokens if answers else 0
    try:
        question = opened.as_question(answerer, setting)
        plan = plan_method(name, question)
        answered = answerer.answer(plan.picture, sample.question, plan.look, limit)
    except (BadImage, ContextTooLong) as error:  # one bad picture among many must not stop the run
        return dataclasses.replace(record, problem=" ".join(str(error).split()))
    crops = answered.crops
    return dataclasses.replace(
        record,
        answer=answered.text,
        score=task.score(answered.text, sample) if answers else None,
        seconds=answered.seconds,
        roi_tokens=answered.roi_tokens,
        crops_xyxy_px=tuple(tuple(int(edge) for edge in crop.box_xyxy_px) for crop in crops),
        kept_cells=tuple(None if crop.keep_cells is None else int(crop.keep_cells.sum()) for crop in crops),
        peak_xy_px=answered.peak_xy_px,
        zoom=mean_zoom(crops, plan.picture.size),
        note=answered.note,
        image_tokens=cell_count(answerer.spec.vision.grid(plan.picture.size).hw),
        other_score=None if plan.other is None or not answers else task.score(answered.text, plan.other),
        **({} if answered.judged is None else dataclasses.asdict(answered.judged)),
        **_map(answered.map_over_image),
        **_quality(plan, crops, answered.peak_xy_px),
    )


def _quality(plan: LookPlan, crops: Sequence[Crop], peak: tuple[float, float] | None) -> dict[str, Any]:
    """The region figures of a record; none for a method with one pass, or without true boxes."""
    if plan.look is None or not plan.truth:
        return {}
    return dataclasses.asdict(region_quality(crops, plan.truth, peak))


def _map(strength: NDArray[np.float32] | None) -> dict[str, Any]:
    """The entries of a record about the map that crops were chosen from."""
    if strength is None:
        return {}
    rows, columns = strength.shape
    return {
        "map_percent": tuple(np.rint(100 * strength).astype(int).ravel().tolist()),
        "map_hw": (rows, columns),
    }
