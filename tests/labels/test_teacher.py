"""The model that labels, asked several questions at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.labels import teacher as teaching
from sdrpn.labels.attention import WatchedAnswer
from sdrpn.labels.questions import DataQuestion, read_questions
from sdrpn.labels.teacher import Asking, Teacher, TeacherOptions
from sdrpn.model import model_from_checkpoint
from tests.labels.data import write_questions
from tests.tolerances import ATTENTION_ABS

HEADS = {1: [0, 2], 3: [1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_questions(folder, images=4, per_image=2)
    Image.new("RGB", (30, 30)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[DataQuestion]:
    """In no order; one that is too long, and one about a picture that cannot be read."""
    found = read_questions(folder / "qa.jsonl")
    odd = [DataQuestion("long", "small.png", 500 * "long "), DataQuestion("broken", "broken.png", "what?")]
    return [found[0], found[5], odd[0], *found[2:5], odd[1], found[7], found[1], found[6]]


@pytest.fixture(scope="module")
def teacher(text_checkpoint: Path, folder: Path) -> Iterator[Teacher]:
    with open_checkpoint(text_checkpoint) as checkpoint:
        options = TeacherOptions(max_new_tokens=6)
        yield Teacher(model_from_checkpoint(checkpoint), tokenizer_of(checkpoint), folder, options)


@pytest.mark.parametrize("batch", [None, 3, 1])
def test_answers_come_in_the_order_of_the_questions(
    teacher: Teacher, questions: list[DataQuestion], batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "ENCODED_AT_ONCE", 2)
    for question, found in zip(questions, teacher.watch_all(questions, HEADS, batch), strict=True):
        if question.id == "long":
            assert isinstance(found, ContextTooLong)
        elif question.id == "broken":
            assert isinstance(found, BadImage)
        else:
            assert isinstance(found, WatchedAnswer)
            alone = teacher.watch(question, HEADS)
            assert (found.token_ids, found.row_count) == (alone.token_ids, alone.row_count)
            for layer, attention in alone.attention.items():
                np.testing.assert_allclose(found.attention[layer], attention, atol=ATTENTION_ABS, rtol=0)


def test_one_question_raises_what_is_wrong_with_it(teacher: Teacher, questions: list[DataQuestion]) -> None:
    with pytest.raises(BadImage, match=r"broken\.png"):
        teacher.watch(questions[6], HEADS)
    with pytest.raises(ContextTooLong, match="shorten the question"):
        teacher.watch(questions[2], HEADS)


@pytest.mark.parametrize(
    ("asking", "asked", "trained"),
    [
        ("plain", "what?", "what?"),
        ("short", "single word or phrase.", "single word or phrase."),
        ("boxes", "on a line of its own.", "single word or phrase."),
    ],
)
def test_what_is_asked_and_what_is_trained_on(teacher: Teacher, asking: Asking, asked: str, trained: str) -> None:
    other = Teacher(teacher.model, teacher._tokenizer, teacher.images, TeacherOptions(asking=asking))
    question = DataQuestion("a", "small.png", "what?")
    assert asked in other.text(other._asked(question).text_ids)
    assert trained in other.text(other.prompt(question).ids_after)


def test_a_model_of_squares_takes_no_other_shape(teacher: Teacher) -> None:
    square = dataclasses.replace(teacher.options, shape="square")
    with pytest.raises(BadInput, match="this model sees every picture as a square"):
        Teacher(teacher.model, teacher._tokenizer, teacher.images, square)


def test_provenance_of_the_usual_options_is_that_of_older_releases() -> None:
    assert set(TeacherOptions().to_json()) == {"rows", "answers", "max_new_tokens"}
    assert TeacherOptions(shape="square", asking="short").to_json()["shape"] == "square"
