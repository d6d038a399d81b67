"""Pictures in turns: what was computed of one is there again when it is asked about, exactly, within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.runtime import Answer, Session
from sdrpn.runtime.prefix_store import PrefixStore
from tests.runtime.asking import BEFORE, no_box, one_box

QUESTIONS = ((8, 9, 10, 11, 12), (20, 21, 22), (7, 6, 5, 4))
VARIANTS = ["fused-fp32", "primitive-fp32", "fused-fp32-kv-int8", "primitive-fp32-kv-fp8"]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def ask(session: Session, seed: int, question: tuple[int, ...] = QUESTIONS[0], decide: Any = one_box) -> Answer:
    return session.answer_ids(picture(seed), BEFORE, question, roi=None, decide=decide, max_new_tokens=6, trace=True)


@pytest.fixture(params=VARIANTS)
def source(request: pytest.FixtureRequest) -> tuple[Path, str]:
    name = "coded_bundle" if "-kv-" in request.param else "tiny_bundle"
    return request.getfixturevalue(name), request.param


@pytest.fixture
def session(tiny_bundle: Path) -> Iterator[Session]:
    with Session.open(tiny_bundle, variant="fused-fp32", threads=1) as opened:
        yield opened


def store_of(session: Session) -> PrefixStore:
    return session._two_pass._prefixes


def encoded(answers: list[Answer]) -> list[int]:
    """How many pictures were encoded for the first look."""
    return [answer.tokens.images_encoded for answer in answers]


@pytest.mark.parametrize("decide", [None, no_box, one_box])
def test_pictures_in_turns_equal_sessions_of_their_own(source: tuple[Path, str], decide: Any) -> None:
    """Bit for bit: the rows are copies."""
    path, variant = source
    expected: dict[int, list[Answer]] = {}
    for seed in (0, 1, 2):
        with Session.open(path, variant=variant, threads=1) as own:
            expected[seed] = [ask(own, seed, question, decide) for question in QUESTIONS]
    with Session.open(path, variant=variant, threads=1) as shared:
        found = {(n, seed): ask(shared, seed, QUESTIONS[n], decide) for n in range(3) for seed in (0, 1, 2)}
    for (n, seed), answer in found.items():
        assert answer.trace is not None
        reference = expected[seed][n].trace
        assert reference is not None
        np.testing.assert_array_equal(answer.trace.step_logits, reference.step_logits)
        assert answer.tokens == expected[seed][n].tokens


def test_what_another_way_of_asking_left_out_is_added(session: Session) -> None:
    """Plain questions leave the RPN's rows away; they are computed once when somebody needs them."""
    ask(session, 0, decide=None)
    ask(session, 1)
    first = ask(session, 0)
    ask(session, 1)
    second = ask(session, 0)
    assert first.tokens.rpn_rows > second.tokens.rpn_rows == len(QUESTIONS[0])
    assert first.token_ids == second.token_ids


def test_one_picture_again_and_again_copies_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("rows were copied")

    for name in ("snapshot", "restore", "share"):
        monkeypatch.setattr(type(session._decoder.slots), name, refuse)
    answers = [ask(session, 0, question, no_box) for question in QUESTIONS]
    assert encoded(answers) == [1, 0, 0]
    assert store_of(session).size_bytes == 0


def test_pictures_that_come_back_are_copied_aside_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    slots, copies = type(session._decoder.slots), []
    snapshot = slots.snapshot

    def counted(self: Any, slot: Any) -> Any:
        copies.append(slot.prefix.digest)
        return snapshot(self, slot)

    monkeypatch.setattr(slots, "snapshot", counted)
    answers = [ask(session, seed, decide=no_box) for seed in (0, 1) * 4]
    assert encoded(answers) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert len(copies) == len(set(copies)) == 2


def test_the_least_recently_used_goes_first(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, variant="fused-fp32", threads=1) as session:
        for seed in (0, 1):
            ask(session, seed, decide=no_box)
        each = store_of(session).size_bytes
    with Session.open(tiny_bundle, variant="fused-fp32", threads=1, prefix_bytes=2 * each) as session:
        for seed in (0, 1, 2, 0, 3):  # two are kept, one is in the slot
            ask(session, seed, decide=no_box)
            assert store_of(session).size_bytes <= 2 * each
        assert encoded([ask(session, seed, decide=no_box) for seed in (0, 3, 1)]) == [0, 0, 1]


@pytest.mark.parametrize("limit", [0, 1000])
def test_where_there_is_no_room_every_picture_begins_anew(tiny_bundle: Path, limit: int) -> None:
    with Session.open(tiny_bundle, variant="fused-fp32", threads=1, prefix_bytes=limit) as session:
        assert encoded([ask(session, seed, decide=no_box) for seed in (0, 1, 0, 0)]) == [1, 1, 1, 0]
        assert store_of(session).size_bytes == 0


def test_a_forgotten_image_is_not_in_the_store_either(session: Session) -> None:
    for seed in (0, 1):
        ask(session, seed, decide=no_box)
    session.forget_image()
    assert encoded([ask(session, seed, decide=no_box) for seed in (0, 1)]) == [1, 1]


def test_other_tokens_before_the_picture_are_another_prefix(session: Session) -> None:
    ask(session, 0, decide=no_box)
    ask(session, 1, decide=no_box)
    other = session.answer_ids(picture(0), (*BEFORE, 9), QUESTIONS[0], roi=None, max_new_tokens=2)
    assert other.tokens.images_encoded == 1


def test_memory_that_runs_out_keeps_nothing(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(self: object, slot: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(session._decoder.slots), "snapshot", scarce)
    assert encoded([ask(session, seed, decide=no_box) for seed in (0, 1, 0)]) == [1, 1, 1]


def test_a_number_of_bytes(tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="prefix_bytes is -1; expected a number of bytes, 0 for none"):
        Session.open(tiny_bundle, prefix_bytes=-1)
