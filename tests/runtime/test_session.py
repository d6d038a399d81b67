"""The decode loop and what surrounds it, on graphs that are Python functions."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, GraphInfo
from sdrpn.errors import BadBundle, BadInput, Cancelled, ContextTooLong, RunFailed
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Sampling, Session
from sdrpn.runtime.backends.fake import FakeBackend, FakeRunner
from tests.runtime.fakes import SPEC, VOCABULARY, Script, fake_bundle

IMAGE = np.full((6, 8, 3), 200, np.uint8)
BEFORE, AFTER = (1,), (3, 4)
PROMPT = len(BEFORE) + SPEC.vision.image_tokens + len(AFTER)
ANYWHERE = RoiPolicy(max_share=1)  # of four cells, any region is large
STOP = SPEC.prompt.eos_token_ids[0]


def script_of(*tokens: int, start: int = PROMPT) -> Script:
    """Graphs that answer with `tokens`, over and over, to a prompt of `start` rows."""
    last = start - 1
    return Script([tokens[(place - last) % len(tokens)] for place in range(len(tokens))])


def write_words_tokenizer(path: Path) -> None:
    """Token i is the word `wi`; words that it does not know are token 0."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


@dataclasses.dataclass(frozen=True)
class Fake:
    """A session on fake graphs, and the record of what it ran."""

    session: Session
    backend: FakeBackend

    def ids(self, **options: Any) -> Answer:
        after = options.pop("after", AFTER)
        return self.session.answer_ids(IMAGE, BEFORE, after, **{"roi": None, "max_new_tokens": 4, **options})


@pytest.fixture
def open_fake(tmp_path: Path) -> Callable[..., Fake]:
    def open_session(
        script: Script, change: Callable[[Bundle], Bundle] = lambda bundle: bundle, max_batch: int | None = None
    ) -> Fake:
        write_words_tokenizer(tmp_path / "tokenizer.json")
        bundle = change(fake_bundle(tmp_path, tokenizer="tokenizer.json"))
        backend = FakeBackend(script.graphs())
        return Fake(Session(bundle, bundle.variant(), backend, max_batch=max_batch), backend)

    return open_session


def with_spec(**changes: Any) -> Callable[[Bundle], Bundle]:
    def change(bundle: Bundle) -> Bundle:
        spec = dataclasses.replace(SPEC, **changes)
        return Bundle(bundle.path, dataclasses.replace(bundle.manifest, spec=spec))

    return change


def with_manifest(**changes: Any) -> Callable[[Bundle], Bundle]:
    def change(bundle: Bundle) -> Bundle:
        return Bundle(bundle.path, dataclasses.replace(bundle.manifest, **changes))

    return change


def looking(script: Script) -> Script:
    """Every cell asks to be looked at again: one crop, all of its cells."""
    script.scores[:] = 9.0
    return script


class TestDecodeLoop:
    def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(self, open_fake: Callable[..., Fake]) -> None:
        answer = open_fake(script_of(5, 6, STOP, 7)).ids(max_new_tokens=10)
        assert (answer.token_ids, answer.finish_reason, answer.text) == ((5, 6), "stop", "w5 w6")

    def test_the_limit_ends_the_answer(self, open_fake: Callable[..., Fake]) -> None:
        answer = open_fake(script_of(5, 6, 7)).ids(max_new_tokens=5)
        assert (answer.token_ids, answer.finish_reason) == ((5, 6, 7, 5, 6), "length")

    def test_a_stop_token_behind_the_limit_is_never_seen(self, open_fake: Callable[..., Fake]) -> None:
        assert open_fake(script_of(5, 6, STOP)).ids(max_new_tokens=2).finish_reason == "length"
        assert open_fake(script_of(5, 6, STOP)).ids(max_new_tokens=3).finish_reason == "stop"

    def test_an_answer_may_be_empty(self, open_fake: Callable[..., Fake]) -> None:
        answer = open_fake(script_of(STOP, 5)).ids(trace=True)
        assert (answer.token_ids, answer.text, answer.finish_reason) == ((), "", "stop")
        assert answer.trace is not None
        assert answer.trace.step_logits.shape == (1, VOCABULARY)

    def test_callers_may_name_more_stop_tokens(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7, 8))
        assert fake.ids(stop_ids=(7, 9)).token_ids == (5, 6)
        assert fake.ids().token_ids == (5, 6, 7, 8)

    def test_the_last_token_is_not_computed_further(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7))
        fake.ids(max_new_tokens=3)
        assert [call.graph for call in fake.backend.calls] == ["vision", "trunk", "tail", *(["trunk", "tail"] * 2)]

    def test_each_token_is_embedded_at_its_position(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7))
        fake.ids(max_new_tokens=3)
        steps = [call.feeds for call in fake.backend.calls if call.graph == "trunk"][1:]
        assert [float(feeds["inputs_embeds"][0, 0, 0]) for feeds in steps] == [5, 6]  # row i of the table holds i
        assert [int(feeds["row_index"][0, 0]) for feeds in steps] == [PROMPT, PROMPT + 1]

    def test_a_seed_is_a_draw(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7))

        def drawn(seed: int | None) -> tuple[int, ...]:
            return fake.ids(max_new_tokens=30, sampling=Sampling(3.0, 1.0, seed)).token_ids

        assert drawn(1) == drawn(1)
        assert drawn(1) != drawn(2)
        assert len({drawn(None) for _ in range(20)}) > 1  # two of them may be equal by chance

    def test_logits_that_overflowed_are_an_error(self, open_fake: Callable[..., Fake]) -> None:
        script = script_of(5, 6)

        def overflow(feeds: object) -> dict[str, np.ndarray]:
            return {"logits": np.full((1, VOCABULARY), np.nan, np.float32)}

        script.tail = overflow  # type: ignore[method-assign]
        with pytest.raises(RunFailed, match="logits of the next token are NaN or infinite"):
            open_fake(script).ids()


class TestStream:
    def test_pieces_make_the_text(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script((5, 6, 7)))
        stream = fake.session.stream(IMAGE, "w8 w9", roi=None, max_new_tokens=7)
        pieces = list(stream)
        assert len(pieces) == 7
        assert "".join(pieces) == stream.answer.text == stream.finish().text
        assert stream.answer.text == fake.session.answer(IMAGE, "w8 w9", roi=None, max_new_tokens=7).text

    def test_the_answer_is_there_at_the_end_only(self, open_fake: Callable[..., Fake]) -> None:
        stream = open_fake(Script()).session.stream(IMAGE, "w8", roi=None, max_new_tokens=3)
        with pytest.raises(RunFailed, match=r"the answer is not complete; iterate to the end or call finish\(\)"):
            _ = stream.answer
        next(iter(stream))
        with pytest.raises(RunFailed, match="not complete"):
            _ = stream.answer
        assert len(stream.finish().token_ids) == 3
        assert stream.answer is stream.finish()
        assert list(stream) == []

    @pytest.mark.parametrize("max_batch", [1, 4])
    def test_other_questions_in_between_change_nothing(self, open_fake: Callable[..., Fake], max_batch: int) -> None:
        fake = open_fake(script_of(5, 6, 7), max_batch=max_batch)
        expected = fake.session.answer(IMAGE, "w8", roi=None, max_new_tokens=5)
        stream = fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        pieces = iter(stream)
        first = next(pieces)
        assert fake.ids().token_ids == (5, 6, 7, 5)
        assert first + "".join(pieces) == expected.text
        assert stream.answer.token_ids == expected.token_ids

    def test_streams_that_are_read_in_turns(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7))
        expected = fake.session.answer(IMAGE, "w8", roi=None, max_new_tokens=5).text
        streams = [fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5) for _ in range(3)]
        assert ["".join(pieces) for pieces in zip(*streams, strict=True)] == [
            piece * 3 for piece in fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        ]
        assert [stream.answer.text for stream in streams] == [expected] * 3

    def test_a_refused_question_takes_nothing_away(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7))
        expected = fake.session.answer(IMAGE, "w8", roi=None, max_new_tokens=5).token_ids
        stream = fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        with pytest.raises(BadInput):
            fake.ids(after=())
        assert stream.finish().token_ids == expected

    def test_a_complete_answer_stays_what_it_is(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6, 7))
        stream = fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=2)
        list(stream)
        ids = stream.answer.token_ids
        fake.ids()
        assert stream.finish().token_ids == ids

    def test_closing_the_session_ends_it(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        stream = fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        pieces = iter(stream)
        next(pieces)
        fake.session.close()
        with pytest.raises(RunFailed, match="the session was closed; open it again"):
            next(pieces)


class TestRequests:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"after": ()}, "no token follows the image; expected at least one, the question"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0; expected an integer of at least 1"),
            ({"max_new_tokens": -3}, "max_new_tokens is -3; expected an integer of at least 1"),
            ({"max_new_tokens": 2.5}, r"max_new_tokens is 2\.5; expected an integer of at least 1"),
            ({"after": (3, 99)}, "token id 99 is outside the vocabulary; expected 0 to 15"),
            ({"after": (-200,)}, "token id -200 is outside the vocabulary; expected 0 to 15"),
        ],
    )
    def test_what_cannot_be_is_refused_before_any_work(
        self, open_fake: Callable[..., Fake], options: dict[str, object], message: str
    ) -> None:
        fake = open_fake(script_of(5, 6, 7))
        with pytest.raises(BadInput, match=message):
            fake.ids(**options)
        assert fake.backend.calls == []
        assert fake.ids(max_new_tokens=2).token_ids == (5, 6)

    def test_without_an_rpn_crops_are_refused_before_any_work(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6), with_spec(rpn=None))
        with pytest.raises(BadInput, match=r"no RPN and answers as the plain model only: pass roi=None"):
            fake.ids(roi=ANYWHERE)
        assert fake.backend.calls == []
        assert fake.ids(max_new_tokens=2).token_ids == (5, 6)

    def test_without_a_tokenizer_it_answers_by_ids_only(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6), with_manifest(tokenizer=None))
        with pytest.raises(BadInput, match=r"has no tokenizer\.json, so it answers token ids only: .* answer_ids"):
            fake.session.answer(IMAGE, "w8")
        assert (fake.ids(max_new_tokens=2).token_ids, fake.ids().text) == ((5, 6), "")

    def test_numbers_of_numpy_will_do(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(script_of(5, 6))
        assert fake.ids(after=np.array(AFTER), max_new_tokens=np.int64(2)).token_ids == (5, 6)


class TestContext:
    """A bundle of 32 positions; the prompt takes 7 of them, a crop 4 more."""

    LIMIT = 32

    @pytest.mark.parametrize("roi_tokens", [0, 4])
    def test_exactly_full_works_and_one_more_does_not(self, open_fake: Callable[..., Fake], roi_tokens: int) -> None:
        script = script_of(5, 6, 7, start=PROMPT + roi_tokens)
        fake = open_fake(looking(script), with_manifest(max_context=self.LIMIT))
        roi = ANYWHERE if roi_tokens else None
        room = self.LIMIT - PROMPT - roi_tokens
        with pytest.raises(ContextTooLong, match=f"need {self.LIMIT + 1} positions, the bundle has {self.LIMIT}"):
            fake.ids(roi=roi, max_new_tokens=room + 1)
        answer = fake.ids(roi=roi, max_new_tokens=room)
        assert answer.token_ids == ((5, 6, 7) * room)[:room]
        assert answer.roi_token_count == roi_tokens

    def test_the_message_names_what_takes_the_room(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(looking(Script()), with_manifest(max_context=self.LIMIT))
        with pytest.raises(
            ContextTooLong,
            match=r"7 prompt tokens \+ 4 RoI tokens \+ 24 new tokens need 35 positions, the bundle has 32; shorten the "
            r"question, answer without the crop \(roi=None\), or lower max_new_tokens",
        ):
            fake.ids(roi=ANYWHERE, max_new_tokens=24)
        with pytest.raises(ContextTooLong, match=r"^7 prompt tokens \+ 99 new tokens need 106 positions, [^(]*$"):
            fake.ids(roi=ANYWHERE, max_new_tokens=99)
        assert len(fake.ids(roi=None, max_new_tokens=24).token_ids) == 24


class TestAnswer:
    def test_trace(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(looking(script_of(5, STOP, start=PROMPT + 4)))
        trace = fake.ids(roi=ANYWHERE, trace=True).trace
        assert trace is not None
        assert trace.roi_logits is not None
        np.testing.assert_array_equal(trace.roi_logits, np.full((2, 2), 9.0, np.float32))
        assert trace.decision is not None
        assert len(trace.decision.crops) == 1
        assert trace.step_logits.argmax(axis=1).tolist() == [5, STOP]
        np.testing.assert_array_equal(trace.first_logits, trace.step_logits[0])
        assert trace.first_logits.dtype == np.float32

    def test_plain_answers_have_no_map(self, open_fake: Callable[..., Fake]) -> None:
        answer = open_fake(Script()).ids(trace=True)
        assert (answer.roi_map, answer.boxes_xyxy_px, answer.note) == (None, (), None)
        assert answer.trace is not None
        assert (answer.trace.roi_logits, answer.trace.decision) == (None, None)

    def test_a_trace_is_kept_on_request_only(self, open_fake: Callable[..., Fake]) -> None:
        assert open_fake(Script()).ids().trace is None

    def test_map_boxes_and_note(self, open_fake: Callable[..., Fake]) -> None:
        looked = open_fake(looking(Script())).ids(roi=ANYWHERE)
        assert looked.roi_map is not None
        np.testing.assert_allclose(looked.roi_map, 1 / (1 + np.exp(-9.0)), rtol=1e-6)
        assert looked.boxes_xyxy_px == ((0, 0, 8, 6),)
        blind = open_fake(Script()).ids(roi=ANYWHERE)
        assert (blind.boxes_xyxy_px, blind.roi_token_count) == ((), 0)
        assert blind.note is not None
        assert blind.note.startswith("nothing inserted: no cell is above 0.15")

    @pytest.mark.parametrize("policy", [None, ANYWHERE])
    def test_timings_add_up(self, open_fake: Callable[..., Fake], policy: RoiPolicy | None) -> None:
        timings = open_fake(looking(Script())).ids(roi=policy, max_new_tokens=6).timings
        assert len(timings.decode_s) == 5
        assert timings.decode_per_token_s == np.median(timings.decode_s)
        assert 0 < timings.llm_prefill_s < timings.stages_s <= timings.total_s
        used = [timings.rpn_s, timings.roi_decode_s, timings.crop_preprocess_s, timings.crop_vision_s]
        assert all(seconds > 0 for seconds in used) if policy else not any([*used, timings.crop_trunk_s])
        assert min(timings.preprocess_s, timings.vision_s, timings.trunk_s, timings.tail_prefill_s) > 0

    def test_one_token_has_no_decode_step(self, open_fake: Callable[..., Fake]) -> None:
        timings = open_fake(Script()).ids(max_new_tokens=1).timings
        assert (timings.decode_s, timings.decode_per_token_s) == ((), 0.0)

    def test_token_counts(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(looking(Script()))
        counts = fake.ids(roi=ANYWHERE, max_new_tokens=3).tokens
        assert (counts.prompt, counts.image, counts.roi, counts.generated) == (PROMPT, 4, 4, 3)
        assert counts.trunk_rows == PROMPT + 4 + len(AFTER)
        assert (counts.rpn_rows, counts.tail_rows, counts.images_encoded) == (PROMPT, PROMPT + 4, 2)
        again = fake.ids(max_new_tokens=3).tokens
        assert (again.trunk_rows, again.rpn_rows, again.tail_rows) == (len(AFTER), 0, len(AFTER))
        assert (again.prompt, again.roi, again.images_encoded) == (PROMPT, 0, 0)


class TestLifetime:
    def test_a_closed_session_refuses_questions(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        with fake.session as session:
            fake.ids()
        session.close()
        with pytest.raises(RunFailed, match="the session was closed; open it again"):
            fake.ids()

    def test_closing_frees_every_graph_and_cache(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        fake.ids()
        decoder = fake.session._decoder
        fake.session.close()
        assert all(isinstance(runner, FakeRunner) and runner._closed for runner in decoder._runners.values())
        assert not any(caches.buffers for caches in decoder.slots.caches.values())

    def test_graphs_that_were_loaded_are_freed_when_one_fails(self, tmp_path: Path) -> None:
        loaded: list[FakeRunner] = []

        class Failing(FakeBackend):
            def load(self, graph: GraphInfo, path: Path) -> FakeRunner:
                if graph.name == "tail":
                    raise RunFailed("tail cannot be loaded")
                loaded.append(super().load(graph, path))
                return loaded[-1]

        bundle = fake_bundle(tmp_path)
        with pytest.raises(RunFailed, match="tail cannot be loaded"):
            Session(bundle, bundle.variant(), Failing(Script().graphs()))
        assert [runner.name for runner in loaded] == ["vision", "trunk"]
        assert all(runner._closed for runner in loaded)

    def test_a_bad_tokenizer_is_found_before_graphs_are_loaded(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        bundle = fake_bundle(tmp_path, tokenizer="tokenizer.json")
        with pytest.raises(BadBundle, match=r"tokenizer\.json is not a tokenizer"):
            Session(bundle, bundle.variant(), FakeBackend({}))


class TestThreads:
    """Several threads ask one session, or each one of its own: every answer is that of a single thread."""

    QUESTIONS: tuple[tuple[int, ...], ...] = ((3, 4), (5, 4), (6, 7, 8))

    def test_answers_are_those_of_one_thread(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(looking(Script()))
        expected = {after: fake.ids(after=after, roi=ANYWHERE, max_new_tokens=5) for after in self.QUESTIONS}
        wrong: list[object] = []

        def ask(after: tuple[int, ...]) -> None:
            for _ in range(20):
                answer = fake.ids(after=after, roi=ANYWHERE, max_new_tokens=5)
                if answer.token_ids != expected[after].token_ids:
                    wrong.append(answer)

        run_threads([lambda after=after: ask(after) for after in self.QUESTIONS])  # type: ignore[misc]
        assert wrong == []

    def test_streams_wait_for_each_other(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        expected = fake.session.answer(IMAGE, "w8", roi=None, max_new_tokens=6).text
        texts: list[str] = []

        def read() -> None:
            for _ in range(5):
                texts.append("".join(fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=6)))

        run_threads([read] * 3)
        assert texts == [expected] * 15

    def test_two_sessions_do_not_know_of_each_other(
        self, text_bundle: Path, tmp_path: Path, open_fake: Callable[..., Fake]
    ) -> None:
        pictures = [np.full((40, 50, 3), value, np.uint8) for value in (40, 90, 200)]
        answers: dict[int, list[tuple[int, ...]]] = {}

        def ask(which: int) -> None:
            with Session.open(text_bundle, threads=1) as session:
                answers[which] = [
                    session.answer_ids(picture, BEFORE, AFTER, max_new_tokens=4).token_ids for picture in pictures * 3
                ]

        ask(0)
        run_threads([lambda which=which: ask(which) for which in (1, 2, 3)])  # type: ignore[misc]
        assert answers[0] == answers[1] == answers[2] == answers[3]

    @pytest.mark.parametrize("max_batch", [1, 4])
    def test_a_stream_that_is_left_keeps_nobody(self, open_fake: Callable[..., Fake], max_batch: int) -> None:
        fake = open_fake(script_of(5, 6, 7), max_batch=max_batch)
        left = fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        next(iter(left))
        run_threads([lambda: fake.ids()])
        assert len(left.finish().token_ids) == 5

    def test_a_stream_that_nobody_holds_any_more_keeps_nobody(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        run_threads([lambda: fake.ids()])

    def test_closing_a_stream_lets_the_next_one_in(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        with fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5) as stream:
            next(iter(stream))
        run_threads([lambda: fake.ids()])
        with pytest.raises(Cancelled, match="the answer was cancelled; ask again"):
            stream.finish()

    def test_cancelling_between_two_tokens(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        stream = fake.session.stream(IMAGE, "w8", roi=None, max_new_tokens=5)
        pieces = iter(stream)
        next(pieces)
        fake.session.cancel()
        with pytest.raises(Cancelled, match="the answer was cancelled; ask again"):
            next(pieces)
        assert len(fake.ids().token_ids) == 4

    def test_cancelling_where_nothing_is_asked(self, open_fake: Callable[..., Fake]) -> None:
        fake = open_fake(Script())
        fake.session.cancel()
        assert len(fake.ids().token_ids) == 4

    def test_closing_waits_for_the_graph_that_runs(self, open_fake: Callable[..., Fake]) -> None:
        script, running, go_on = Script(), threading.Event(), threading.Event()
        vision, order = script.vision, list[str]()

        def slow(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            running.set()
            go_on.wait(TIMEOUT_S)
            order.append("vision")
            return vision(feeds)

        script.vision = slow  # type: ignore[method-assign]
        fake = open_fake(script)

        def ask() -> None:
            with pytest.raises(RunFailed, match="the session was closed"):
                fake.ids()

        def close() -> None:
            running.wait(TIMEOUT_S)
            threading.Timer(0.05, go_on.set).start()
            fake.session.close()
            order.append("closed")

        run_threads([ask, close])
        assert order == ["vision", "closed"]


TIMEOUT_S = 60  # of what must not hang


def run_threads(work: Sequence[Callable[[], object]]) -> None:
    """Run all at once, and raise the first error."""
    with ThreadPoolExecutor(len(work)) as pool:
        for future in [pool.submit(answer) for answer in work]:
            future.result(TIMEOUT_S)
