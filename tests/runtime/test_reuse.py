"""Exact prefix reuse: whatever was kept gives the same answer as computing everything again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.method.roi import Crop, RoiDecision
from sdrpn.model.base import model_from_checkpoint
from sdrpn.model.reference import ReferenceAnswer, reference_answer
from sdrpn.runtime import Answer, Session
from tests.tolerances import REUSE_CODES_LOGITS_ABS, REUSE_LOGITS_ABS

BEFORE, QUESTION, OTHER = (1, 5, 6, 7), (8, 9, 10, 11, 12), (20, 21, 22)
NEW_TOKENS = 6
Decide = Callable[[np.ndarray, tuple[int, int]], RoiDecision]


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8))


def decide_on(*crops: Crop) -> Decide:
    def decide(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
        return RoiDecision(np.zeros((0, 4), np.int64), crops, None, logits)

    return decide


def mask_crop(grid_side: int) -> Crop:
    keep = np.zeros((grid_side, grid_side), bool)
    keep[1:3, :2] = True
    return Crop((10, 5, 100, 80), keep, None)


DECISIONS: dict[str, Callable[[int], Decide | None]] = {
    "plain": lambda side: None,
    "no box": lambda side: decide_on(),
    "one box": lambda side: decide_on(Crop((10, 5, 60, 50), None, None)),
    "mask": lambda side: decide_on(mask_crop(side)),
    "two boxes": lambda side: decide_on(Crop((10, 5, 60, 50), None, None), Crop((70, 30, 130, 90), None, None)),
    "resized box": lambda side: decide_on(Crop((10, 5, 60, 50), None, (2, 3))),
}


@pytest.fixture
def session(cpu_session: Session) -> Session:
    return cpu_session


def ask(session: Session, image: Image.Image, question: tuple[int, ...], case: str) -> Answer:
    decide = DECISIONS[case](clip_of(session.spec).grid_side)
    return session.answer_ids(image, BEFORE, question, roi=None, decide=decide, max_new_tokens=NEW_TOKENS, trace=True)


@pytest.fixture(params=["fused-fp32-kv-int8", "primitive-fp32-kv-int8", "primitive-fp32-kv-fp8"])
def coded(request: pytest.FixtureRequest, coded_bundle: Path) -> Iterator[Session]:
    """With keys and values in 8 bits."""
    with Session.open(coded_bundle, variant=request.param, threads=1) as opened:
        yield opened


def fresh(session: Session, seed: int, question: tuple[int, ...], case: str) -> Answer:
    """The answer of a session that was asked nothing else."""
    return answered_fresh(session.bundle.path, session.backend, session.variant.name, seed, question, case)


@cache
def answered_fresh(path: Path, backend: str, variant: str, seed: int, question: tuple[int, ...], case: str) -> Answer:
    with Session.open(path, backend=backend, variant=variant, threads=1) as other:
        return ask(other, picture(seed), question, case)


@pytest.fixture(scope="module")
def computed_again(tiny_checkpoint: Path) -> Callable[[str], ReferenceAnswer]:
    """What the reference answers in each case about the first picture."""
    with open_checkpoint(tiny_checkpoint) as source:
        model = model_from_checkpoint(source)

    @cache
    def answer(case: str) -> ReferenceAnswer:
        decide = DECISIONS[case](clip_of(model.spec).grid_side)
        return reference_answer(
            model, picture(0), BEFORE, QUESTION, roi=None, decide=decide, max_new_tokens=NEW_TOKENS,
            stop_ids=model.spec.prompt.eos_token_ids,
        )  # fmt: skip

    return answer


def assert_same(found: Answer, expected: Answer, tolerance: float = REUSE_LOGITS_ABS) -> None:
    assert found.trace is not None
    assert expected.trace is not None
    assert found.token_ids == expected.token_ids
    difference = np.abs(found.trace.step_logits - expected.trace.step_logits).max()
    assert difference <= tolerance, f"logits differ by {difference:.2e}"
    assert found.roi_token_count == expected.roi_token_count


@pytest.mark.parametrize("case", DECISIONS)
def test_reuse_equals_the_reference_that_computes_everything_again(
    session: Session, computed_again: Callable[[str], ReferenceAnswer], case: str
) -> None:
    answer, expected = ask(session, picture(0), QUESTION, case), computed_again(case)
    assert answer.trace is not None
    assert answer.token_ids == expected.token_ids
    assert answer.roi_token_count == expected.roi_token_count
    difference = np.abs(answer.trace.step_logits - expected.step_logits).max()
    assert difference <= REUSE_LOGITS_ABS, f"logits differ by {difference:.2e}"


@pytest.mark.parametrize("first", ["plain", "no box", "one box", "two boxes"])
@pytest.mark.parametrize("second", list(DECISIONS))
def test_a_second_question_equals_a_fresh_session(session: Session, first: str, second: str) -> None:
    image = picture(1)
    ask(session, image, OTHER, first)
    assert_same(ask(session, image, QUESTION, second), fresh(session, 1, QUESTION, second))


@pytest.mark.parametrize("case", DECISIONS)
def test_caches_in_8_bits_are_reused_as_well(coded: Session, case: str) -> None:
    """Rows are rounded when they are written, whatever else is written with them."""
    image = picture(1)
    ask(coded, image, OTHER, "two boxes")
    assert_same(ask(coded, image, QUESTION, case), fresh(coded, 1, QUESTION, case), REUSE_CODES_LOGITS_ABS)


@pytest.mark.parametrize("case", ["no box", "one box", "mask"])
def test_another_image_in_between_changes_nothing(session: Session, case: str) -> None:
    first = ask(session, picture(2), QUESTION, case)
    ask(session, picture(3), OTHER, "two boxes")
    assert_same(ask(session, picture(2), QUESTION, case), first)


def test_a_second_question_does_no_work_for_the_prefix(session: Session) -> None:
    image = picture(4)
    prefix = len(BEFORE) + session.spec.vision.image_tokens
    first = ask(session, image, OTHER, "no box").tokens
    assert (first.trunk_rows, first.rpn_rows, first.tail_rows) == (prefix + len(OTHER),) * 3
    assert first.images_encoded == 1
    second = ask(session, image, QUESTION, "no box").tokens
    assert (second.trunk_rows, second.rpn_rows, second.tail_rows) == (len(QUESTION),) * 3
    assert second.images_encoded == 0


def test_a_crop_costs_its_own_tokens_and_the_question_twice_through_the_trunk(session: Session) -> None:
    image = picture(5)
    prefix = len(BEFORE) + session.spec.vision.image_tokens
    first = ask(session, image, QUESTION, "one box").tokens
    assert first.trunk_rows == prefix + len(QUESTION) + first.roi + len(QUESTION)
    assert first.rpn_rows == prefix + len(QUESTION)
    assert first.tail_rows == prefix + first.roi + len(QUESTION)
    second = ask(session, image, QUESTION, "one box").tokens
    assert second.trunk_rows == len(QUESTION) + second.roi + len(QUESTION)
    assert second.rpn_rows == len(QUESTION)
    assert second.tail_rows == second.roi + len(QUESTION)
    assert second.images_encoded == 1  # the crop


def test_another_prefix_is_not_taken_for_the_last_one(session: Session) -> None:
    image = picture(6)
    first = session.answer_ids(image, BEFORE, QUESTION, roi=None, max_new_tokens=2).tokens
    other = session.answer_ids(image, (*BEFORE, 9), QUESTION, roi=None, max_new_tokens=2).tokens
    assert other.trunk_rows == first.trunk_rows + 1
    assert other.images_encoded == 1


def test_a_failed_question_leaves_no_half_filled_prefix(session: Session) -> None:
    image = picture(7)

    def fail(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
        raise ValueError("no decision today")

    expected = fresh(session, 7, QUESTION, "one box")
    ask(session, image, OTHER, "no box")
    with pytest.raises(ValueError, match="no decision today"):
        session.answer_ids(image, BEFORE, OTHER, roi=None, decide=fail)
    assert_same(ask(session, image, QUESTION, "one box"), expected)


def test_a_forgotten_image_is_computed_anew(session: Session) -> None:
    image = picture(0)
    first, kept = (ask(session, image, QUESTION, "one box") for _ in range(2))
    session.forget_image()
    anew = ask(session, image, QUESTION, "one box")
    assert [answer.tokens.images_encoded for answer in (first, kept, anew)] == [2, 1, 2]
    assert_same(anew, first)
