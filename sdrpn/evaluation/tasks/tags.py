"""The rendered scenes of `sdrpn.tags` as a task: a code to read on one of several tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

from PIL import Image

from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import exact_match
from sdrpn.evaluation.task import Task
from sdrpn.tags.task import TRAINED_CODES, tag_sample

__all__ = ["SPLITS", "tags_task"]

SPLITS = ("heldout", "shifted", "mixed")
MAX_NEW_TOKENS = 8  # three digits and an end
UNLABELLED = 64
UNLABELLED_SEED = 7_000_003  # in the training split, independent of the evaluation's seed
# A question from the training data that is not about a single tag.
GENERAL_QUESTION = "which tags are here ?"

_TRAINED = frozenset(TRAINED_CODES)


@dataclass(frozen=True)
class TagSamples(Sequence[Sample]):
    """The samples of a split, rendered on demand."""

    split: str
    length: int
    seed: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return _sample(self.split, self.seed, index % self.length)


def tags_task(split: str, samples: int, seed: int) -> Task:
    """The first `samples` of a split. Raises BadInput for an unknown split."""
    return Task(
        name="tags",
        samples=TagSamples(split, samples, seed),
        score=lambda answer, sample: exact_match(answer, sample.answers),
        metric="exact match",
        max_new_tokens=MAX_NEW_TOKENS,
        general_question=GENERAL_QUESTION,
        unlabelled=TagSamples("train", UNLABELLED, UNLABELLED_SEED),
        settings={"split": split, "seed": seed},
    )


def _sample(split: str, seed: int, index: int) -> Sample:
    tag = tag_sample(split, seed, index)
    return Sample(
        id=str(index),
        open_picture=partial(_same, tag.image),
        question=tag.question,
        answers=(tag.answer,),
        boxes_xyxy_px=(tag.box_xyxy_px,),
        category="code seen in training" if tag.answer in _TRAINED else "code never trained on",
    )


def _same(picture: Image.Image) -> Image.Image:
    return picture
