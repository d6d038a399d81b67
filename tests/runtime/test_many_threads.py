"""Many threads on one session of the shipped model: every answer is the one that a single thread gets."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from sdrpn.bundle.shipped import DEMO_BUNDLE
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Session
from sdrpn.tags.task import tag_samples

PICTURES, PER_SCENE = 2, 3
POLICIES = (RoiPolicy(-0.8), None)
Question = tuple[Image.Image, str, RoiPolicy | None]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session.open(DEMO_BUNDLE, backend="onnxruntime", threads=1, max_batch=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def questions(session: Session) -> list[tuple[Question, str]]:
    """With the texts that one thread gets."""
    samples = list(tag_samples("heldout", PICTURES * PER_SCENE, 0, per_scene=PER_SCENE))
    asked = [(sample.image, sample.question, POLICIES[n % 2]) for n, sample in enumerate(samples)]
    return [(each, ask(session, each)) for each in asked]


def ask(session: Session, question: Question) -> str:
    image, text, roi = question
    return session.answer(image, text, roi=roi, max_new_tokens=8).text


def wrong_answers(session: Session, questions: list[tuple[Question, str]], threads: int, each: int) -> list[str]:
    """What threads got that they should not have, errors included."""
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(each):
            question, expected = questions[(number + turn) % len(questions)]
            try:
                found = ask(session, question)
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
            else:
                if found != expected:
                    wrong.append(f"{found!r}, expected {expected!r}")

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return wrong


def test_eight(session: Session, questions: list[tuple[Question, str]]) -> None:
    assert len({text for _, text in questions}) > 2  # or nothing could be mixed up
    assert wrong_answers(session, questions, threads=8, each=3) == []


@pytest.mark.slow
def test_thirty_two(session: Session, questions: list[tuple[Question, str]]) -> None:
    assert wrong_answers(session, questions, threads=32, each=50) == []
