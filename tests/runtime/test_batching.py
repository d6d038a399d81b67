"""Questions that are answered together get the answers that each gets alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sdrpn.cli.main import main
from sdrpn.errors import BadInput, Cancelled
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Session
from sdrpn.runtime.decoder import NextToken
from sdrpn.runtime.questions import AnswerOptions
from sdrpn.runtime.stream import AnswerStream
from tests.damage import copied
from tests.runtime.asking import BEFORE, no_box
from tests.runtime.together import alone, picture, require_equal, stream_of
from tests.tolerances import BATCH_CODES_LOGITS_ABS, BATCH_LOGITS_ABS


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens every step of any decoder was asked for."""
    from sdrpn.runtime.decoder import Decoder

    sizes: list[int] = []
    step = Decoder.step

    def counted(self: Decoder, tokens: Sequence[NextToken]) -> Any:
        sizes.append(len(tokens))
        return step(self, tokens)

    monkeypatch.setattr(Decoder, "step", counted)
    return sizes


VARIANTS = ["fused-fp32", "primitive-fp32", "fused-fp32-kv-int8", "primitive-fp32-kv-int8", "primitive-fp32-kv-fp8"]


@pytest.fixture(params=[*VARIANTS, "shared key heads", "shared key heads, primitive", "optimized", "openvino"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    """Both dialects, caches in 8 bits, grouped query heads, ONNX Runtime's own attention, and OpenVINO's."""
    name, backend = request.param, "onnxruntime"
    if name == "openvino":
        pytest.importorskip("openvino")
        backend = "openvino"
    if name in VARIANTS:
        source = request.getfixturevalue("coded_bundle" if "-kv-" in name else "tiny_bundle")
    else:
        source = request.getfixturevalue("text_bundle")
    if name == "optimized":
        source, name = optimized(source, tmp_path), "fused-fp32"
    variant = name if name in VARIANTS else f"{'primitive' if 'primitive' in name else 'fused'}-fp32"
    with Session.open(source, backend=backend, variant=variant, threads=1, max_batch=4) as opened:
        yield opened


def optimized(source: Path, folder: Path) -> Path:
    """A copy with the graphs of `sdrpn optimize`."""
    bundle = copied(source, folder / "bundle")
    assert main(["optimize", str(bundle), "--threads", "1", "--variant", "fused-fp32"]) == 0
    return bundle


def tolerance_of(session: Session) -> float:
    return BATCH_CODES_LOGITS_ABS if session.variant.kv_cache else BATCH_LOGITS_ABS


def test_all_at_once(session: Session, batches: list[int]) -> None:
    numbers = range(7)
    expected = alone(session, numbers)
    assert set(batches) == {1}
    streams = [stream_of(session, number) for number in numbers]
    for stream in streams:
        stream.submit()
    for stream, each in zip(streams, expected, strict=True):
        require_equal(stream.finish(), each, tolerance_of(session))
    assert max(batches) == 4
    assert len(session._decoder.slots.all) == 4


def test_steps_between_the_parts_of_a_prefill_change_nothing(session: Session) -> None:
    """With a bound that no part keeps, every 16 rows, with steps of the others before each part."""
    numbers = list(range(8))
    expected = alone(session, numbers)
    session.limit_stalls(1e-9)
    divided: list[int] = []
    part = session._decoder.pace.part

    def counted(name: str, wanted: int, least: int = 16) -> int:
        divided.append(part(name, wanted, least) < wanted)
        return wanted if not divided[-1] else 16

    session._decoder.pace.part = counted  # type: ignore[method-assign]
    streams = [stream_of(session, number) for number in numbers]
    for stream in streams:
        stream.submit()
    for stream, each in zip(streams, expected, strict=True):
        require_equal(stream.finish(), each, tolerance_of(session))
    assert any(divided)
    assert sum(session.load.batches.values()) > 0
    assert (session.load.running, session.load.waiting) == (0, 0)


def test_some_are_cancelled_half_way(session: Session) -> None:
    numbers = (0, 2, 4, 3)
    expected = alone(session, numbers)
    streams = [stream_of(session, number) for number in numbers]
    for stream in streams:
        stream.submit()
    for pieces in zip(*map(iter_tokens, streams), strict=False):
        assert len(pieces) == 4
        if len(streams[0]._sequence.token_ids) >= 3:
            break
    streams[0].close()
    streams[2].close()
    for place in (1, 3):
        require_equal(streams[place].finish(), expected[place], tolerance_of(session))
    for place in (0, 2):
        with pytest.raises(Cancelled):
            streams[place].finish()
    again = stream_of(session, numbers[0])
    again.begin()
    require_equal(again.finish(), expected[0], tolerance_of(session))


def iter_tokens(stream: AnswerStream) -> Iterator[int]:
    while True:
        stream._work_until(stream._has_next)
        token = stream._taken()
        if token is None:
            return
        yield token


def test_questions_about_one_picture_share_its_prefix(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, variant="fused-fp32", threads=1, max_batch=3) as session:
        questions = [(20, 21, 22), (30, 31), (40,)]
        expected = [ask_ids(session, question).finish() for question in questions]
        session.forget_image()
        streams = [ask_ids(session, question) for question in questions]
        found = [stream.finish() for stream in streams]
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]


def ask_ids(session: Session, question: tuple[int, ...]) -> AnswerStream:
    options = AnswerOptions(None, 5, trace=True, decide=no_box)
    stream = session._questions.stream_of(picture(0), BEFORE, question, options)
    stream.submit()
    return stream


class TestAnswers:
    QUESTIONS = ("What is it?", "Where?", "How many are there, and of which colour?", "", "Why?", "Read the sign.")

    def test_they_come_in_order(self, text_bundle: Path) -> None:
        asked = [(picture(n % 2), question) for n, question in enumerate(self.QUESTIONS * 2) if question]
        with Session.open(text_bundle, threads=1, max_batch=3) as session:
            expected = [
                session.answer(image, question, roi=RoiPolicy(max_share=1), max_new_tokens=7)
                for image, question in asked
            ]
            found = session.answers(iter(asked), roi=RoiPolicy(max_share=1), max_new_tokens=7)
        assert all(isinstance(answer, Answer) for answer in found)
        assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]  # type: ignore[union-attr]

    def test_one_that_fails_spoils_no_other(self, text_bundle: Path) -> None:
        asked: list[tuple[Any, str]] = [(picture(0), question or "x" * 2000) for question in self.QUESTIONS]
        asked[1] = (b"no picture", "What is it?")
        with Session.open(text_bundle, threads=1) as session:
            found = session.answers(asked, max_new_tokens=4)
        kinds = [type(each) if isinstance(each, Exception) else Answer for each in found]
        assert [issubclass(kind, BadInput) for kind in kinds] == [False, True, False, True, False, False]

    def test_none(self, text_bundle: Path) -> None:
        with Session.open(text_bundle, threads=1) as session:
            assert session.answers([]) == []

    def test_how_many_at_once(self, text_bundle: Path) -> None:
        with pytest.raises(BadInput, match=r"max_batch is 100000000; expected a number of questions, .* at most 1024"):
            Session.open(text_bundle, max_batch=100_000_000)
        with pytest.raises(BadInput, match="max_batch is 0; expected a number of questions, at least 1"):
            Session.open(text_bundle, max_batch=0)
