"""Requests about many pictures at once, whose prompts share beginnings: each gets the answer about its own picture."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from sdrpn.runtime import Session
from sdrpn.runtime.server import ServerOptions
from sdrpn.runtime.server.replies import map_json
from tests.runtime.server.serving import QUESTION, Server, chat_body, data_url, scene_url, serving

PICTURES = 50
# They share beginnings, and some are another's beginning.
QUESTIONS = ("What", "What is", "What is it?", "What is it? And why?", "Where is it?", "Where")
AT_ONCE = 8
REGIONS = {"threshold": 0.3, "max_share": 1.0}


@dataclass(frozen=True)
class Case:
    body: dict[str, Any]
    expected: tuple[str, object]


@pytest.fixture(scope="module")
def server(text_bundle: Path) -> Iterator[Server]:
    """Little memory for pictures, so that prefixes come and go."""
    with (
        Session.open(text_bundle, threads=1, prefix_bytes=1_000_000) as session,
        serving(session, ServerOptions(model="demo", most_queue=64)) as running,
    ):
        session.limit_stalls(0.001)
        yield running


@pytest.fixture(scope="module")
def cases(text_bundle: Path) -> Sequence[Case]:
    """What a session answers offline, each question on its own."""
    found = []
    with Session.open(text_bundle, threads=1, max_batch=1, prefix_bytes=0) as session:
        for number in range(PICTURES):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            for question in QUESTIONS:
                session.forget_image()
                body = chat_body(data_url(file.getvalue()), question, max_tokens=5, roi=REGIONS, map="png")
                roi = session.policy.__class__(**{**vars(session.policy), **REGIONS})
                answer = session.answer(pixels, question, roi=roi, max_new_tokens=5)
                found.append(Case(body, (answer.text, map_json(answer.roi_map, "png"))))
    return found


def require_own_answers(server: Server, cases: Sequence[Case], count: int, seed: int) -> None:
    chance = random.Random(seed)
    asked = [chance.choice(cases) for _ in range(count)]
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(AT_ONCE) as threads:

        def ask(case: Case) -> tuple[str, object]:
            reply = client.post("/v1/chat/completions", json=case.body)
            assert reply.status_code == 200, reply.text
            whole = reply.json()
            return whole["choices"][0]["message"]["content"], whole["sdrpn"]["map"]

        found = list(threads.map(ask, asked))
    wrong = [number for number, case in enumerate(asked) if found[number] != case.expected]
    assert wrong == [], f"{len(wrong)} of {count} answers are others'"


def test_pictures_differ(cases: Sequence[Case]) -> None:
    """Else an answer about another picture would not be noticed."""
    assert len({str(case.expected) for case in cases}) == len(cases)


def test_no_answer_is_about_another_picture(server: Server, cases: Sequence[Case]) -> None:
    require_own_answers(server, cases, 300, seed=0)


@pytest.mark.slow
def test_no_answer_of_ten_thousand_is_about_another_picture(server: Server, cases: Sequence[Case]) -> None:
    require_own_answers(server, cases, 10_000, seed=1)


def test_a_second_question_computes_a_quarter_at_most() -> None:
    with Session.open("demo", threads=1) as session, serving(session, ServerOptions(model="demo")) as demo:
        computed = []
        for question in (QUESTION, "what is the code on the red tag ?"):
            body = chat_body(scene_url(), question, max_tokens=2, roi={"enabled": False})
            usage = demo.post("/v1/chat/completions", body).json()["usage"]
            computed.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
    assert computed[1] <= 0.25 * computed[0]
