"""Looks of a session: submit, wait, and make of every map what `look.py` describes. Knows no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdrpn.errors import Cancelled
from sdrpn.method.roi import roi_map
from sdrpn.runtime.answer import Stopwatch, Timings
from sdrpn.runtime.look import Look
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.regions import dropped_regions, regions_of
from sdrpn.runtime.scheduler import Scheduler
from sdrpn.runtime.sequence import Glance, LookPlan, LookRequest
from sdrpn.runtime.stream import until
from sdrpn.runtime.two_pass import TwoPass

__all__ = ["LookQuestion", "LookRun"]


@dataclass(frozen=True)
class LookQuestion:
    """The token ids on both sides of the image."""

    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]
    text: str | None = None  # None: it was asked by ids


class LookRun:
    """One look for every question about a picture: made, run to its end, and collected."""

    def __init__(
        self,
        open_it: Callable[[], Picture],
        questions: Sequence[LookQuestion],
        plan: LookPlan,
        two_pass: TwoPass,
        scheduler: Scheduler,
    ) -> None:
        """Args: open_it: opens the picture, which is part of the first stage. Raises what is wrong with a question."""
        self._questions, self._scheduler = questions, scheduler
        self._watch, self._two_pass = Stopwatch(), two_pass
        with self._watch.stage("preprocess"):
            picture = open_it()
            digest = picture.digest()
            requests = [LookRequest(picture, each.ids_before, each.ids_after, plan) for each in questions]
            self._glances = [Glance(request, two_pass.prefix_of(request, digest), self._watch) for request in requests]
        self._grid = plan.vision.grid(picture.size)

    def finish(self) -> list[Look]:
        """Work until all are there. Raises what ended the first that failed; the others end then, too."""
        try:
            self._scheduler.submit(*self._glances)
            self._scheduler.work_until(lambda: self._over)
            return self._collected()
        finally:
            self._end()

    async def finish_async(self) -> list[Look]:
        """The same without blocking the event loop. Cancelling the task ends all of them."""
        try:
            self._scheduler.submit(*self._glances)
            await until(self._scheduler, lambda: self._over)
            return self._collected()
        finally:
            self._end()

    @property
    def _over(self) -> bool:
        return all(glance.over or glance.cancelled for glance in self._glances)

    def _collected(self) -> list[Look]:
        for glance in self._glances:
            if glance.found is None:
                raise glance.error or Cancelled("the look was cancelled; look again")
        timings = self._watch.timings()
        pairs = zip(self._glances, self._questions, strict=True)
        return [self._look(glance, each.text, timings) for glance, each in pairs]

    def _look(self, glance: Glance, question: str | None, timings: Timings) -> Look:
        found = glance.found
        assert found is not None
        assert found.scores is not None
        assert found.decision is not None
        decision, shown = found.decision, roi_map(found.scores.roi_logits)
        return Look(
            question=question,
            image_wh=glance.request.picture.size,
            boxes=regions_of(decision, shown, self._grid),
            roi_map=shown,
            dropped=dropped_regions(decision, shown, self._grid),
            note=found.note,
            timings=timings,
            picture=glance.request.picture,
            fit=self._two_pass.fit,
            gate_score=found.gate_score,
            kept_cells=self._two_pass.kept_cells(found.scores),
        )

    def _end(self) -> None:
        for glance in self._glances:
            if not glance.over:
                self._scheduler.cancel(glance)
