"""Looks of a session: submit, wait, and make of every map what `look.py` describes. Knows no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdrpn.errors import Cancelled
from sdrpn.method.geometry import Seen
from sdrpn.method.grids import ImageGrid
from sdrpn.method.roi import PolicyDecide, roi_map
from sdrpn.runtime.answer import Stopwatch, Timings
from sdrpn.runtime.look import Look
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.regions import dropped_regions, regions_of
from sdrpn.runtime.scheduler import Scheduler
from sdrpn.runtime.sequence import Glance, LookRequest
from sdrpn.runtime.two_pass import TwoPass

__all__ = ["LookQuestion", "look_at"]


@dataclass(frozen=True)
class LookQuestion:
    """The token ids on both sides of the image."""

    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]
    text: str | None = None  # None: it was asked by ids


def look_at(
    open_it: Callable[[], Picture],
    questions: Sequence[LookQuestion],
    decide: PolicyDecide,
    two_pass: TwoPass,
    scheduler: Scheduler,
) -> list[Look]:
    """One look for every question about a picture. Raises what ended the first that failed; the others end then, too.

    Args: open_it: opens the picture, which is part of the first stage
    """
    watch = Stopwatch()
    with watch.stage("preprocess"):
        picture = open_it()
        digest = picture.digest()
        requests = [LookRequest(picture, each.ids_before, each.ids_after, decide) for each in questions]
        glances = [Glance(request, two_pass.prefix_of(request, digest), watch) for request in requests]
    _run(scheduler, glances)
    timings, grid = watch.timings(), two_pass.grid_of(picture)
    return [
        _look(glance, each.text, grid, timings, two_pass.fit) for glance, each in zip(glances, questions, strict=True)
    ]


def _run(scheduler: Scheduler, glances: Sequence[Glance]) -> None:
    scheduler.submit(*glances)
    try:
        scheduler.work_until(lambda: all(glance.over or glance.cancelled for glance in glances))
        for glance in glances:
            if glance.found is None:
                raise glance.error or Cancelled("the look was cancelled; look again")
    except BaseException:
        for glance in glances:
            scheduler.cancel(glance)
        raise


def _look(glance: Glance, question: str | None, grid: ImageGrid, timings: Timings, fit: Seen) -> Look:
    assert glance.found is not None
    logits, decision = glance.found
    shown = roi_map(logits)
    return Look(
        question=question,
        image_wh=glance.request.image.size,
        boxes=regions_of(decision, shown, grid),
        roi_map=shown,
        dropped=dropped_regions(decision, shown, grid),
        note=decision.note,
        timings=timings,
        picture=glance.request.image,
        fit=fit,
    )
