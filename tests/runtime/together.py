"""Ragged questions for tests of batches: asked alone and together, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sdrpn.runtime import Answer, Session
from sdrpn.runtime.questions import AnswerOptions
from sdrpn.runtime.stream import AnswerStream
from tests.runtime.asking import BEFORE, no_box, one_box

__all__ = ["CASES", "alone", "picture", "require_equal", "stream_of", "together"]

# Question, the way to decide, most tokens: of several lengths in every respect.
CASES: tuple[tuple[tuple[int, ...], Any, int], ...] = (
    ((8, 9, 10, 11, 12), one_box, 9),
    ((20, 21), None, 3),
    (tuple(range(30, 47)), no_box, 14),
    ((7, 6, 5, 4), one_box, 6),
    ((9,), no_box, 11),
)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def stream_of(session: Session, number: int) -> AnswerStream:
    question, decide, most = CASES[number % len(CASES)]
    stops = () if number % 2 else (3,)
    options = AnswerOptions(None, most, trace=True, decide=decide)
    return session._questions.stream_of(picture(number % 3), BEFORE, question, options, stops)


def alone(session: Session, numbers: Sequence[int]) -> list[Answer]:
    found = []
    for number in numbers:
        session.forget_image()
        stream = stream_of(session, number)
        stream.begin()
        found.append(stream.finish())
    session.forget_image()
    return found


def require_equal(found: Answer, expected: Answer, tolerance: float) -> None:
    assert found.trace is not None
    assert expected.trace is not None
    assert found.token_ids == expected.token_ids
    assert found.finish_reason == expected.finish_reason
    assert found.roi_token_count == expected.roi_token_count
    difference = np.abs(found.trace.step_logits - expected.trace.step_logits).max()
    assert difference <= tolerance, f"logits differ by {difference:.2e}"


def together(session: Session, numbers: Sequence[int]) -> list[Answer]:
    session.forget_image()
    streams = [stream_of(session, number) for number in numbers]
    for stream in streams:
        stream.submit()
    return [stream.finish() for stream in streams]
