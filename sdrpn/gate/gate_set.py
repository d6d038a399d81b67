"""The gate labels of a folder, and which of them a training sees: at which view, with which label. Knows no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdrpn.errors import BadInput
from sdrpn.gate.labelling import GATE_NAME, judged_rows, what_lacks
from sdrpn.gate.rule import GateRule, Judged
from sdrpn.host.json_files import read_json_object
from sdrpn.images.names import leads_out
from sdrpn.labels.denoise import IGNORED
from sdrpn.train.label_set import LabelledPrompt, split_by_image

__all__ = ["GateQuestion", "GateSample", "GateSet", "GateSplit", "drawn_samples", "read_gate_labels", "seen_samples"]

WRONG_SHARE = 0.9  # of the draws of a question that needs another look are at a view that is answered wrong
WRONG_VIEWS = 2  # the highest of these


@dataclass(frozen=True)
class GateQuestion:
    """A question without its answers: the prompt, the picture's grid at every view, and what the answers said."""

    image: str  # relative to the folder of images
    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    judged: Judged

    def prompt(self, view: int) -> LabelledPrompt:
        """The prompt at a view, as taps are computed from it; its cells have no labels."""
        return LabelledPrompt(self.image, self.ids_before, self.ids_after, np.full(self.grids[view], IGNORED, np.int8))


@dataclass(frozen=True)
class GateSample:
    """A question at a view. label: whether it needs another look there."""

    question: int
    view: int
    label: bool


@dataclass(frozen=True)
class GateSet:
    """All questions of a folder that could be asked, in order."""

    questions: tuple[GateQuestion, ...]
    about: dict[str, Any]  # gate.json

    @property
    def views(self) -> tuple[str, ...]:
        """From the least on."""
        return tuple(self.about["views"])

    @property
    def settling(self) -> int:
        """How many of the best views settle an answer: a gate never decides at them."""
        return GateRule(**self.about["rule"]).settling

    @property
    def images(self) -> Path | None:
        """The folder of the pictures."""
        return Path(self.about["images"]) if "images" in self.about else None

    def digest(self) -> str:
        """SHA-256 as hex over prompts, image names, and what the answers said."""
        return hashlib.sha256(repr(self.questions).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class GateSplit:
    """Indices into a gate set."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def read_gate_labels(folder: Path) -> GateSet:
    """Read what `sdrpn gate-label` wrote. Raises BadInput where it is missing, unfinished, or teaches nothing."""
    path = folder / GATE_NAME
    if not path.is_file():
        raise BadInput(f"{folder} has no {GATE_NAME}; expected a folder that `sdrpn gate-label` finished")
    about = read_json_object(path, "label again")
    views, rule = about.get("views"), about.get("rule")
    if not isinstance(views, list) or len(views) < 2 or not isinstance(rule, dict):
        raise BadInput(f"{path} names no views or no rule; label again")
    try:
        found = judged_rows(folder, GateRule(**rule))
        questions = tuple(_question(row, judged, folder, len(views)) for row, judged in found if judged is not None)
    except TypeError as error:
        raise BadInput(f"{path} has an unknown rule ({error}); label again") from error
    lacking = what_lacks({question.judged.case for question in questions})
    if lacking is not None:
        raise BadInput(f"{folder} has {lacking}")
    return GateSet(questions, about)


def _question(row: dict[str, Any], judged: Judged, folder: Path, views: int) -> GateQuestion:
    """Raises BadInput, which names the row, for values that `sdrpn gate-label` never writes."""
    where = f"{folder}: the row {row['id']!r}"
    ids = [*(row["ids_before"] or []), *(row["ids_after"] or [None])]
    if any(not isinstance(value, int) or value < 0 for value in ids):
        raise BadInput(f"{where} has no tokens, or one below 0; label again")
    if not isinstance(row["image"], str) or not row["image"] or leads_out(row["image"]):
        raise BadInput(f"{where} names the image {row['image']!r}; expected a path inside the folder of images")
    sides = row["grids"] or []
    if len(judged.right) != views or len(sides) != 2 * views or any(side is None or side < 1 for side in sides):
        raise BadInput(f"{where} has {len(judged.right)} answers and {len(sides) // 2} grids for {views} views")
    grids = tuple((sides[place], sides[place + 1]) for place in range(0, len(sides), 2))
    return GateQuestion(row["image"], tuple(row["ids_before"]), tuple(row["ids_after"]), grids, judged)


def split_questions(labels: GateSet, share: float, seed: int) -> GateSplit:
    """Hold out a share of the images, with every question about them. Raises BadInput where nothing would be left."""
    split = split_by_image([question.prompt(0) for question in labels.questions], share, seed)
    return GateSplit(split.train, split.held_out)


def drawn_samples(labels: GateSet, places: Sequence[int], seed: int, *, balanced: bool) -> list[GateSample]:
    """What a gate learns of these questions: one view of each that teaches something, as Q-Zoom draws them.

    A question that is right everywhere is shown below the views that settle it, with the label False. One that needs
    another look is mostly shown at one of the highest views that are answered wrong, with the label True; else at a
    higher one, with the label False.
    balanced: only as many of the first kind as there are of the second
    """
    rng = np.random.default_rng((seed, 1))
    again = [place for place in places if labels.questions[place].judged.case == "again"]
    enough = [place for place in places if labels.questions[place].judged.case == "enough"]
    if balanced:
        enough = [enough[index] for index in sorted(rng.permutation(len(enough))[: len(again)])]
        again = [again[index] for index in sorted(rng.permutation(len(again))[: len(enough)])]
    lower = len(labels.views) - labels.settling
    found = [GateSample(place, int(rng.integers(lower)), False) for place in enough]
    for place in again:
        first = labels.questions[place].judged.first_right
        right = list(range(first, lower))
        if right and rng.random() >= WRONG_SHARE:
            found.append(GateSample(place, int(rng.choice(right)), False))
        else:
            wrong = range(max(0, first - WRONG_VIEWS), first)
            found.append(GateSample(place, int(rng.choice(list(wrong))), True))
    return sorted(found, key=lambda sample: sample.question)


def seen_samples(labels: GateSet, places: Sequence[int]) -> list[GateSample]:
    """Every view of these questions at which a gate may have to decide, whether it teaches something or not.

    The label is whether the answer there is wrong and that of the best view right.
    """
    lower = len(labels.views) - labels.settling
    return [
        GateSample(
            place, view, labels.questions[place].judged.right[-1] and not labels.questions[place].judged.right[view]
        )
        for place in places
        for view in range(lower)
    ]
