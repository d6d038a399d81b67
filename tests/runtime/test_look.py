"""Looks: the boxes of an answer without the answer, and what either hands on to the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from sdrpn.errors import BadInput, ContextTooLong, RunFailed
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Look, Session
from tests.runtime.asking import BEFORE, NEW_TOKENS, OTHER, QUESTION, no_box, one_box, picture
from tests.runtime.fakes import SPEC, Script
from tests.runtime.test_session import AFTER, ANYWHERE, IMAGE, Fake, open_fake, script_of, with_manifest, with_spec
from tests.tolerances import LOOK_MAP_ABS, REUSE_LOGITS_ABS

__all__ = ["open_fake"]  # a fixture

GRAPHS = ("vision", "trunk", "rpn", "tail")


def ran(fake: Fake) -> list[str]:
    """The graphs that ran, in order."""
    return [call.graph for call in fake.backend.calls]


def fired(script: Script) -> Script:
    """The left column of four cells asks to be looked at again."""
    script.scores[:] = [9.0, -9.0, 9.0, -9.0]
    return script


def glance(fake: Fake, after: tuple[int, ...] = AFTER) -> Look:
    return fake.session.look_ids(IMAGE, (1,), after, roi=ANYWHERE)


class TestWhatRuns:
    def test_nothing_above_the_tap(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        glance(fake)
        assert ran(fake) == ["vision", "trunk", "rpn"]

    def test_another_question_costs_its_own_rows(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        glance(fake)
        fake.backend.calls.clear()
        glance(fake, (4, 3, 3))
        assert ran(fake) == ["trunk", "rpn"]
        assert [call.feeds["row_index"].shape[1] for call in fake.backend.calls] == [3, 3]

    def test_the_same_question_costs_nothing(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        first = glance(fake)
        fake.backend.calls.clear()
        assert glance(fake) == first
        assert ran(fake) == []

    def test_another_policy_on_the_same_map_costs_nothing(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        glance(fake)
        fake.backend.calls.clear()
        none = fake.session.look_ids(IMAGE, (1,), AFTER, roi=RoiPolicy(threshold=0.99, max_share=1))
        assert (none.boxes, ran(fake)) == ((), [])

    def test_an_answer_goes_on_from_there(self, open_fake: Callable[..., Fake]) -> None:
        """The first pass is not repeated: the crop is encoded, and what follows the prefix is computed with it."""
        fake = open_fake(fired(script_of(5)))
        glance(fake)
        fake.backend.calls.clear()
        answer = fake.ids(roi=ANYWHERE, max_new_tokens=1)
        assert ran(fake) == ["vision", "tail", "trunk", "tail"]
        prefix = 1 + SPEC.vision.image_tokens
        counts = answer.tokens
        assert (counts.trunk_rows, counts.rpn_rows) == (answer.tokens.roi + len(AFTER), 0)
        assert counts.tail_rows == prefix + answer.tokens.roi + len(AFTER)

    def test_an_answer_without_a_crop_needs_the_tail_alone(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5))
        glance(fake)
        fake.backend.calls.clear()
        assert fake.ids(roi=ANYWHERE, max_new_tokens=1).tokens.trunk_rows == 0
        assert ran(fake) == ["tail"]

    def test_an_answer_to_another_question_reuses_the_picture(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5))
        glance(fake)
        answer = fake.ids(roi=ANYWHERE, after=(4, 3, 3), max_new_tokens=1)
        assert (answer.tokens.trunk_rows, answer.tokens.rpn_rows, answer.tokens.images_encoded) == (3, 3, 0)

    def test_a_look_after_an_answer_reuses_the_picture(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5, 6)))
        fake.ids(roi=ANYWHERE)
        fake.backend.calls.clear()
        glance(fake)
        assert ran(fake) == ["trunk", "rpn"]

    def test_a_forgotten_image_is_computed_again(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        glance(fake)
        fake.session.forget_image()
        fake.backend.calls.clear()
        glance(fake)
        assert ran(fake) == ["vision", "trunk", "rpn"]


class TestSeveralQuestions:
    WORDS = ("w8", "w9 w3", "w4 w4 w4", "w8")

    def test_the_picture_is_encoded_once(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        looks = fake.session.look_many(IMAGE, self.WORDS, roi=ANYWHERE)
        assert [look.question for look in looks] == list(self.WORDS)
        assert ran(fake) == ["vision", "trunk", "rpn", "trunk", "rpn", "trunk", "rpn", "trunk", "rpn"]
        rows = [call.feeds["row_index"].shape[1] for call in fake.backend.calls if call.graph == "trunk"]
        prefix = looks[0].roi_map.size
        assert all(count < prefix + 8 for count in rows[1:])

    def test_each_is_what_a_look_of_its_own_finds(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        found = fake.session.look_many(IMAGE, self.WORDS, roi=ANYWHERE)
        fake.session.forget_image()
        assert found == [fake.session.look(IMAGE, text, roi=ANYWHERE) for text in self.WORDS]

    def test_none_and_a_text_in_place_of_several(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5))
        assert fake.session.look_many(IMAGE, []) == []
        with pytest.raises(BadInput, match=r"questions is one text; expected a list of questions \(look asks one\)"):
            fake.session.look_many(IMAGE, "w8")
        assert ran(fake) == []

    def test_without_blocking_the_event_loop(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        one, several = fake.session.look(IMAGE, "w8", roi=ANYWHERE), fake.session.look_many(IMAGE, self.WORDS)

        async def looked() -> tuple[list[Look], list[Look]]:
            ones = await asyncio.gather(*(fake.session.look_async(IMAGE, "w8", roi=ANYWHERE) for _ in range(3)))
            return ones, await fake.session.look_many_async(IMAGE, self.WORDS)

        assert asyncio.run(looked()) == ([one] * 3, several)

    @pytest.mark.parametrize("questions", ["w8", None, 3])
    def test_what_is_no_list_in_an_event_loop(self, open_fake: Callable[..., Fake], questions: Any) -> None:
        with pytest.raises(BadInput, match=r"questions is .*; expected a list of questions"):
            asyncio.run(open_fake(script_of(5)).session.look_many_async(IMAGE, questions))

    def test_one_that_cannot_be_asked_stops_all_before_any_work(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5), with_manifest(max_context=9))
        with pytest.raises(ContextTooLong):
            fake.session.look_many(IMAGE, ("w8", "w8 " * 20))
        assert ran(fake) == []


class TestResult:
    def test_boxes_scores_and_cells(self, open_fake: Callable[..., Fake]) -> None:
        found = glance(open_fake(fired(script_of(5))))
        (region,) = found.boxes
        assert found.image_wh == (IMAGE.shape[1], IMAGE.shape[0])
        assert found.roi_map.shape == (2, 2)
        assert region.cells == (0, 0, 2, 2)  # two cells are shown as three by three, where there is room
        assert region.score == region.score_max == pytest.approx(1, abs=1e-3)
        assert region.score_mean == pytest.approx(0.5, abs=1e-3)

    def test_a_crop_has_full_resolution(self, open_fake: Callable[..., Fake]) -> None:
        found = glance(open_fake(fired(script_of(5))))
        x1, y1, x2, y2 = found.boxes[0].xyxy_px
        np.testing.assert_array_equal(np.asarray(found.crop(0)), IMAGE[y1:y2, x1:x2])
        with pytest.raises(BadInput, match="there is no box 1: this look has 1 box"):
            found.crop(1)

    def test_what_was_left_out_and_why(self, open_fake: Callable[..., Fake]) -> None:
        script = script_of(5)
        script.scores[:] = [9.0, 9.0, 9.0, 9.0]
        found = open_fake(script).session.look_ids(IMAGE, (1,), AFTER, roi=RoiPolicy(max_share=0.5))
        (dropped,) = found.dropped
        assert (found.boxes, dropped.cells, dropped.reason) == ((), (0, 0, 2, 2), "more than 2 cells")
        assert found.note == "nothing inserted: 0 regions of fewer than 2 cells, 1 region of more than 2"

    def test_it_is_json(self, open_fake: Callable[..., Fake]) -> None:
        found = glance(open_fake(fired(script_of(5))))
        value = json.loads(json.dumps(found.to_dict()))
        assert value["boxes"][0]["xyxy_px"] == list(found.boxes[0].xyxy_px)
        np.testing.assert_array_equal(np.array(value["roi_map"], np.float32), found.roi_map)
        assert "roi_map" not in found.to_dict(with_map=False)

    def test_it_shows_itself_in_a_line(self, open_fake: Callable[..., Fake]) -> None:
        found = glance(open_fake(fired(script_of(5))))
        assert repr(found).startswith(f"Look(None, boxes=[{found.boxes[0].xyxy_px} 1.00], ")
        assert len(repr(found)) < 120

    def test_looks_are_compared_by_what_they_found(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)))
        first, second, other = glance(fake), glance(fake), glance(fake, (4, 4))
        assert first == second
        assert hash(first) == hash(second)
        assert first != fake.session.look_ids(IMAGE, (1,), AFTER, roi=0.99)
        assert first == other  # asked by ids, and the same map
        assert first != "a look"


class TestRequests:
    def test_words_and_a_threshold(self, open_fake: Callable[..., Fake]) -> None:
        found = open_fake(fired(script_of(5))).session.look(IMAGE, "w8", roi=0.3)
        assert (found.question, found.boxes) == ("w8", ())  # two of four cells are more than the default share

    @pytest.mark.parametrize(
        ("roi", "message"),
        [
            (
                None,
                "roi is None; expected a threshold between 0 and 1, a RoiChange, or a RoiPolicy: a look finds regions",
            ),
            ("0.3", "roi is '0.3'; expected a threshold between 0 and 1, a RoiChange, or a RoiPolicy: a look finds"),
            (True, "roi is True; expected a threshold between 0 and 1, a RoiChange, or a RoiPolicy: a look finds"),
            (3, "threshold is 3; expected a number between 0 and 1, or between -1 and 0"),
        ],
    )
    def test_a_policy_that_is_none(self, open_fake: Callable[..., Fake], roi: object, message: str) -> None:
        fake = open_fake(script_of(5))
        with pytest.raises(BadInput, match=message):
            fake.session.look(IMAGE, "w8", roi=roi)  # type: ignore[arg-type]
        assert ran(fake) == []

    @pytest.mark.parametrize(
        ("ids", "message"),
        [
            ({"after": "w8"}, "ids_after_image is 'w8'; expected token ids: a list of integers"),
            ({"before": "a"}, "ids_before_image is 'a'; expected token ids: a list of integers"),
            ({"before": b"a"}, "ids_before_image is b'a'; expected token ids"),
            ({"after": None}, "ids_after_image is None; expected token ids"),
            ({"after": 3}, "ids_after_image is 3; expected token ids"),
            ({"after": ["w8"]}, "ids_after_image has 'w8' in it; expected token ids"),
            ({"after": (3, 4.5)}, r"ids_after_image has 4\.5 in it; expected token ids"),
            ({"after": (True,)}, "ids_after_image has True in it; expected token ids"),
            ({"after": [[3, 4]]}, r"ids_after_image has \[3, 4\] in it; expected token ids"),
            ({"after": (2**70,)}, r"ids_after_image has 1180591620717411303424 in it; expected token ids"),
            ({"stop_ids": ("</s>",)}, "stop_ids has '</s>' in it; expected token ids"),
        ],
    )
    def test_what_is_no_list_of_token_ids(
        self, open_fake: Callable[..., Fake], ids: dict[str, Any], message: str
    ) -> None:
        """The same for looks and for answers."""
        fake = open_fake(script_of(5, 6))
        given = {"before": (1,), "after": AFTER, **ids}
        before, after, options = given.pop("before"), given.pop("after"), given
        with pytest.raises(BadInput, match=f"^{message}"):
            fake.session.answer_ids(IMAGE, before, after, roi=None, **options)
        if not options:
            with pytest.raises(BadInput, match=f"^{message}"):
                fake.session.look_ids(IMAGE, before, after)
        assert ran(fake) == []

    @pytest.mark.parametrize(
        ("images", "pieces", "message"),
        [
            ([IMAGE], "ab", "pieces is 'ab'; expected a list"),
            ([IMAGE], [(1,), "w8"], r"pieces\[1\] is 'w8'; expected token ids: a list of integers"),
            ([IMAGE], [(1,), None], r"pieces\[1\] is None; expected token ids"),
            ("a.jpg", [(1,), (2,)], "images is 'a.jpg'; expected a list"),
            (None, [(1,), (2,)], "images is None; expected a list"),
        ],
    )
    def test_what_is_no_list_of_pieces(
        self, open_fake: Callable[..., Fake], images: Any, pieces: Any, message: str
    ) -> None:
        fake = open_fake(script_of(5, 6))
        with pytest.raises(BadInput, match=f"^{message}"):
            fake.session.answer_pieces(images, pieces, roi=None)
        assert ran(fake) == []

    def test_what_decides_nothing(self, open_fake: Callable[..., Fake]) -> None:
        fake, anything = open_fake(fired(script_of(5))), cast(Any, 3)
        with pytest.raises(BadInput, match="decide is 3; expected a function"):
            fake.session.look_ids(IMAGE, (1,), AFTER, decide=anything)
        assert ran(fake) == []
        nothing = cast(Any, lambda logits, image_wh: None)
        with pytest.raises(BadInput, match="what decide returns is None; expected RoiDecision"):
            fake.session.look_ids(IMAGE, (1,), AFTER, decide=nothing)
        with pytest.raises(BadInput, match="what decide returns is None; expected RoiDecision"):
            fake.session.answer_ids(IMAGE, (1,), AFTER, decide=nothing)
        assert len(glance(fake).boxes) == 1

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"sampling": 3}, "sampling is 3; expected Sampling"),
            ({"trace": "x"}, "trace is 'x'; expected True or False"),
        ],
    )
    def test_options_of_another_kind(
        self, open_fake: Callable[..., Fake], options: dict[str, Any], message: str
    ) -> None:
        fake = open_fake(script_of(5))
        with pytest.raises(BadInput, match=message):
            fake.session.answer(IMAGE, "w8", roi=None, **options)
        with pytest.raises(BadInput, match=message):
            fake.session.answer_ids(IMAGE, (1,), AFTER, roi=None, **options)
        assert ran(fake) == []

    def test_without_an_rpn(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5), with_spec(rpn=None))
        with pytest.raises(BadInput, match="no RPN and answers as the plain model only: nothing can look"):
            glance(fake)
        assert ran(fake) == []

    def test_without_a_tokenizer(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(fired(script_of(5)), with_manifest(tokenizer=None))
        with pytest.raises(BadInput, match=r"has no tokenizer\.json, .* or call look_ids"):
            fake.session.look(IMAGE, "w8")
        assert len(glance(fake).boxes) == 1

    def test_too_long(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5), with_manifest(max_context=7))
        assert glance(fake).boxes == ()  # 7 positions, and no new token
        with pytest.raises(ContextTooLong, match="8 prompt tokens"):
            glance(fake, (3, 4, 5))

    def test_after_the_end(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5))
        fake.session.close()
        with pytest.raises(RunFailed, match="the session was closed; open it again"):
            glance(fake)

    def test_a_failure_is_reported_and_leaves_nothing(self, open_fake: Callable[..., Fake]) -> None:
        script = fired(script_of(5))
        script.scores[:] = np.nan
        fake = open_fake(script)
        with pytest.raises(RunFailed, match="scores of the RPN are NaN or infinite"):
            glance(fake)
        fired(script)
        assert len(glance(fake).boxes) == 1


@pytest.fixture
def session(cpu_session: Session) -> Session:
    return cpu_session


def asked(session: Session, question: tuple[int, ...], decide: object = one_box) -> Answer:
    options = {"roi": None, "decide": decide, "max_new_tokens": NEW_TOKENS, "trace": True}
    return session.answer_ids(picture(), BEFORE, question, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("decide", [one_box, no_box])
@pytest.mark.parametrize("before", [QUESTION, OTHER])
def test_an_answer_after_a_look_is_that_of_a_fresh_session(
    session: Session, decide: object, before: tuple[int, ...]
) -> None:
    session.look_ids(picture(), BEFORE, before, roi=0.15)
    found = asked(session, QUESTION, decide)
    session.forget_image()
    expected = asked(session, QUESTION, decide)
    assert found.token_ids == expected.token_ids
    assert found.trace is not None
    assert expected.trace is not None
    np.testing.assert_allclose(found.trace.step_logits, expected.trace.step_logits, atol=REUSE_LOGITS_ABS)
    assert found.roi_map is not None
    assert expected.roi_map is not None
    np.testing.assert_allclose(found.roi_map, expected.roi_map, atol=LOOK_MAP_ABS)


def test_several_looks_equal_single_ones(text_bundle: Path) -> None:
    questions = ("what is it", "what is that", "is it a sign")
    with Session.open(text_bundle, threads=1) as session:
        found = session.look_many(picture(), questions)
        for question, look in zip(questions, found, strict=True):
            session.forget_image()
            single = session.look(picture(), question)
            np.testing.assert_allclose(look.roi_map, single.roi_map, atol=LOOK_MAP_ABS)
            assert look.boxes_xyxy_px == single.boxes_xyxy_px


def test_threads_look_and_answer_at_once(session: Session) -> None:
    pictures = [np.roll(picture(), shift, axis=1) for shift in range(4)]
    expected = [session.look_ids(image, BEFORE, QUESTION) for image in pictures]
    answers = [session.answer_ids(image, BEFORE, OTHER, max_new_tokens=3).token_ids for image in pictures]
    session.forget_image()
    with ThreadPoolExecutor(8) as pool:
        looks = [pool.submit(session.look_ids, image, BEFORE, QUESTION) for image in pictures]
        others = [pool.submit(session.answer_ids, image, BEFORE, OTHER, max_new_tokens=3) for image in pictures]
        assert [other.result().token_ids for other in others] == answers
        for look, wanted in zip(looks, expected, strict=True):
            np.testing.assert_allclose(look.result().roi_map, wanted.roi_map, atol=LOOK_MAP_ABS)
