"""Who works, who waits, and what becomes of the others when one ends, on graphs that are Python functions."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput, Cancelled, RunFailed
from sdrpn.method.roi import RoiDecision, without_sinks
from sdrpn.runtime import Session
from sdrpn.runtime.backends.fake import FakeBackend, FakeCall
from sdrpn.runtime.questions import AnswerOptions
from sdrpn.runtime.stream import AnswerStream
from tests.runtime.asking import no_box
from tests.runtime.fakes import Script, fake_bundle
from tests.runtime.test_session import IMAGE, run_threads, script_of, write_words_tokenizer

TIMEOUT_S = 60  # of what must not hang
TOKENS = (5, 6, 7)


class Sessions:
    """Sessions on one script, closed at the end."""

    def __init__(self, folder: Path) -> None:
        write_words_tokenizer(folder / "tokenizer.json")
        self._bundle = fake_bundle(folder, tokenizer="tokenizer.json")
        self.opened: list[Session] = []

    def open(self, script: Script, max_batch: int = 4) -> Session:
        backend = FakeBackend(script.graphs())
        self.opened.append(Session(self._bundle, self._bundle.variant(), backend, max_batch=max_batch))
        return self.opened[-1]


@pytest.fixture
def sessions(tmp_path: Path) -> Iterator[Sessions]:
    made = Sessions(tmp_path)
    yield made
    for session in made.opened:
        session.close()


def begun(session: Session, new_tokens: int = 6, after: tuple[int, ...] = (3, 4), decide: Any = None) -> AnswerStream:
    stream = session._questions.stream_of(IMAGE, (1,), after, AnswerOptions(None, new_tokens, decide=decide))
    stream.submit()
    return stream


def batches_of(session: Session) -> list[int]:
    """How many rows every decode step of the trunk had."""
    backend = session._library
    assert isinstance(backend, FakeBackend)
    steps = [call.feeds["inputs_embeds"].shape for call in backend.calls if call.graph == "trunk"]
    return [shape[0] for shape in steps if shape[1] == 1]


class TestBatches:
    def test_all_that_run_are_one_step(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        streams = [begun(session) for _ in range(6)]
        assert [stream.finish().token_ids for stream in streams] == [TOKENS * 2] * 6
        assert batches_of(session) == [4] * 5 + [2] * 5

    def test_one_alone_has_one_slot(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        for _ in range(3):
            begun(session).finish()
        assert len(session._decoder.slots.all) == 1
        assert set(batches_of(session)) == {1}

    def test_a_gap_is_closed(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        streams = [begun(session, new_tokens) for new_tokens in (9, 2, 9)]
        assert [len(stream.finish().token_ids) for stream in streams] == [9, 2, 9]
        assert batches_of(session) == [3] + [2] * 7

    def test_where_memory_is_short_they_wait(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        session._scheduler._may_grow = lambda size_bytes: False
        assert [begun(session).finish().token_ids for _ in range(3)] == [TOKENS * 2] * 3
        assert len(session._decoder.slots.all) == 1

    def test_memory_that_runs_out_for_one_more_keeps_the_others(
        self, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session = sessions.open(script_of(*TOKENS))
        first, second = begun(session), begun(session)
        backend = session._library

        def scarce(*arguments: object, **options: object) -> None:
            raise MemoryError

        first._work_until(first._has_next)
        with monkeypatch.context() as patch:
            patch.setattr(type(backend), "allocate", scarce)
            session._scheduler._slot_for(second._sequence)
        assert first.finish().token_ids == second.finish().token_ids == TOKENS * 2


class TestStalls:
    def test_those_that_run_step_between_the_graphs_of_a_prefill(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        session.limit_stalls(1e-9)
        first = begun(session, 40)
        first._work_until(first._has_next)
        calls = session._library.calls  # type: ignore[attr-defined]
        calls.clear()
        second = begun(session, decide=without_sinks(no_box))
        second._work_until(second._has_next)
        prefilled = [call.graph for call in calls if is_prefill(call)]
        assert prefilled == ["trunk", "rpn", "tail"]  # the picture is known
        between = [call.graph for call in calls[: index_of_last_prefill(calls)] if not is_prefill(call)]
        assert between == ["trunk", "tail"] * 3  # a step before each
        assert first.finish().token_ids == tuple(TOKENS[n % 3] for n in range(40))
        assert second.finish().token_ids == TOKENS * 2

    def test_without_a_bound_a_prefill_is_one_unit(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        first = begun(session, 40)
        first._work_until(first._has_next)
        calls = session._library.calls  # type: ignore[attr-defined]
        calls.clear()
        second = begun(session, decide=without_sinks(no_box))
        second._work_until(second._has_next)
        assert all(is_prefill(call) for call in calls)

    def test_a_prefill_that_is_cancelled_ends_before_its_next_graph(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        session.limit_stalls(1e-9)
        first = begun(session, 40)
        first._work_until(first._has_next)
        calls = session._library.calls  # type: ignore[attr-defined]
        calls.clear()

        def cancelling(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
            second.close()
            return no_box(logits, image_wh)

        second = begun(session, decide=without_sinks(cancelling))
        with pytest.raises(Cancelled):
            second.finish()
        assert [call.graph for call in calls if is_prefill(call)] == ["trunk", "rpn"]
        assert first.finish().token_ids == tuple(TOKENS[n % 3] for n in range(40))

    def test_a_failed_step_between_is_that_of_its_own_sequence(self, sessions: Sessions) -> None:
        script = script_of(*TOKENS)
        trunk = script.trunk

        def failing(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if feeds["row_index"].shape[1] == 1 and len(session._scheduler._current) == 2:
                raise RunFailed("the trunk graph failed")
            return trunk(feeds)

        script.trunk = failing  # type: ignore[method-assign]
        session = sessions.open(script)
        session.limit_stalls(1e-9)
        first = begun(session, 40)
        first._work_until(first._has_next)
        second = begun(session, 1, decide=without_sinks(no_box))
        assert second.finish().token_ids == TOKENS[:1]
        with pytest.raises(RunFailed, match="the trunk graph failed"):
            first.finish()

    def test_the_time_of_steps_between_belongs_to_no_stage(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        session.limit_stalls(1e-9)
        first = begun(session, 40)
        first._work_until(first._has_next)
        times = begun(session).finish().timings
        assert 0 < times.first_token_s <= times.total_s
        assert times.stages_s <= times.total_s
        assert 0 <= times.waited_s <= times.first_token_s
        assert times.longest_wait_s > 0
        first.close()


def is_prefill(call: FakeCall) -> bool:
    return call.graph != "vision" and call.feeds["row_index"].shape[1] > 1


def index_of_last_prefill(calls: Sequence[FakeCall]) -> int:
    return max(number for number, call in enumerate(calls) if is_prefill(call))


class TestFailures:
    def test_of_one_spoils_no_other(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))

        def refuse(*arguments: object) -> None:
            raise ValueError("no decision today")

        streams = [begun(session), begun(session, decide=refuse), begun(session)]
        with pytest.raises(ValueError, match="no decision today"):
            streams[1].finish()
        with pytest.raises(RunFailed, match="the answer was ended by an error"):
            streams[1].finish()
        assert [streams[n].finish().token_ids for n in (0, 2)] == [TOKENS * 2] * 2

    def test_in_a_step_is_that_of_whose_row_it_is(self, sessions: Sessions) -> None:
        """A batch that fails is tried row by row."""
        script = script_of(*TOKENS)
        tail = script.tail

        def failing(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if feeds["row_index"].shape[1] == 1 and (feeds["row_index"] == 12).any():
                raise RunFailed("the tail graph failed")
            return tail(feeds)

        script.tail = failing  # type: ignore[method-assign]
        session = sessions.open(script)
        streams = [begun(session, 4), begun(session, 9), begun(session, 4)]
        with pytest.raises(RunFailed, match="the tail graph failed"):
            streams[1].finish()
        assert [len(streams[n].finish().token_ids) for n in (0, 2)] == [4, 4]

    def test_an_overflow_is_that_of_its_row(self, sessions: Sessions) -> None:
        script = script_of(*TOKENS)
        tail = script.tail

        def overflowing(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            found = dict(tail(feeds))
            if len(found["logits"]) == 3:
                found["logits"][1] = np.nan
            return found

        script.tail = overflowing  # type: ignore[method-assign]
        session = sessions.open(script)
        streams = [begun(session) for _ in range(3)]
        with pytest.raises(RunFailed, match="logits of the next token are NaN or infinite"):
            streams[1].finish()
        assert [streams[n].finish().token_ids for n in (0, 2)] == [TOKENS * 2] * 2
        assert begun(session).finish().token_ids == TOKENS * 2

    def test_ctrl_c_is_that_of_the_thread_it_came_to(self, sessions: Sessions) -> None:
        script = script_of(*TOKENS)
        trunk, left = script.trunk, iter(range(5))

        def interrupted(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if next(left, None) == 4:
                raise KeyboardInterrupt
            return trunk(feeds)

        script.trunk = interrupted  # type: ignore[method-assign]
        session = sessions.open(script)
        streams = [begun(session) for _ in range(3)]
        with pytest.raises(KeyboardInterrupt):
            streams[0].finish()
        with pytest.raises(RunFailed, match="ended by an error"):
            streams[0].finish()
        assert [streams[n].finish().token_ids for n in (1, 2)] == [TOKENS * 2] * 2

    def test_ctrl_c_in_anothers_prefill_begins_it_again(self, sessions: Sessions) -> None:
        script = script_of(*TOKENS)
        vision, left = script.vision, iter(range(2))

        def interrupted(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            if next(left, None) == 0:
                raise KeyboardInterrupt
            return vision(feeds)

        script.vision = interrupted  # type: ignore[method-assign]
        session = sessions.open(script)
        first, second = begun(session), begun(session)
        with pytest.raises(KeyboardInterrupt):
            second.finish()
        assert first.finish().token_ids == TOKENS * 2


class TestEnds:
    def test_one_that_waits_can_be_cancelled(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS), max_batch=1)
        streams = [begun(session) for _ in range(3)]
        streams[0]._work_until(streams[0]._has_next)
        streams[1].close()
        with pytest.raises(Cancelled, match="the answer was cancelled; ask again"):
            streams[1].finish()
        assert [streams[n].finish().token_ids for n in (0, 2)] == [TOKENS * 2] * 2

    def test_cancelling_the_session_leaves_those_that_wait(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS), max_batch=2)
        streams = [begun(session) for _ in range(3)]
        for stream in streams[:2]:
            stream._work_until(stream._has_next)
        session.cancel()
        for stream in streams[:2]:
            with pytest.raises(Cancelled):
                stream.finish()
        assert streams[2].finish().token_ids == TOKENS * 2

    def test_one_that_nobody_holds_gives_its_slot_back(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS), max_batch=1)
        stream = begun(session, 200)
        stream._work_until(stream._has_next)
        del stream
        gc.collect()
        assert begun(session).finish().token_ids == TOKENS * 2
        assert len(batches_of(session)) == 5

    def test_closing_ends_those_that_wait_as_well(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS), max_batch=1)
        streams = [begun(session) for _ in range(3)]
        session.close()
        for stream in streams:
            with pytest.raises(RunFailed, match="the session was closed; open it again"):
                stream.finish()

    @pytest.mark.parametrize("what", ["ask", "close"])
    def test_not_in_the_middle_of_an_answer(self, sessions: Sessions, what: str) -> None:
        session = sessions.open(script_of(*TOKENS))

        def again(*arguments: object) -> None:
            if what == "ask":
                begun(session).finish()
            else:
                session.close()

        with pytest.raises(RunFailed, match="this thread is in the middle of an answer of the same session"):
            begun(session, decide=again).finish()
        assert begun(session).finish().token_ids == TOKENS * 2


class TestThreads:
    def test_whoever_has_an_answer_lets_another_work(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        wrong: list[object] = []

        def ask(number: int) -> None:
            for turn in range(10):
                new_tokens = 1 + (number + turn) % 7
                found = begun(session, new_tokens).finish().token_ids
                if found != (TOKENS * 3)[:new_tokens]:
                    wrong.append(found)

        run_threads([lambda number=number: ask(number) for number in range(8)])  # type: ignore[misc]
        assert wrong == []
        assert max(batches_of(session)) > 1

    def test_two_threads_read_one_stream(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        stream = session.stream(IMAGE, "w8", roi=None, max_new_tokens=40)
        tokens: list[int] = []

        def read() -> None:
            while True:
                stream._work_until(stream._has_next)
                token_id = stream._taken()
                if token_id is None:
                    return
                tokens.append(token_id)

        run_threads([read] * 2)
        assert sorted(tokens) == sorted(stream.finish().token_ids)


class TestAsync:
    def test_answers_and_streams(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        expected = session.answer(IMAGE, "w8", roi=None, max_new_tokens=9).text

        async def streamed() -> str:
            return "".join([piece async for piece in session.stream_async(IMAGE, "w8", roi=None, max_new_tokens=9)])

        async def ask() -> list[str]:
            answers = [session.answer_async(IMAGE, "w8", roi=None, max_new_tokens=9) for _ in range(5)]
            texts = await asyncio.gather(*(streamed() for _ in range(5)))
            return [*texts, *(answer.text for answer in await asyncio.gather(*answers))]

        assert asyncio.run(ask()) == [expected] * 10
        assert max(batches_of(session)) > 1

    def test_the_event_loop_goes_on(self, sessions: Sessions) -> None:
        script, go_on = script_of(*TOKENS), threading.Event()
        vision = script.vision

        def slow(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            assert go_on.wait(TIMEOUT_S)
            return vision(feeds)

        script.vision = slow  # type: ignore[method-assign]
        session = sessions.open(script)

        async def ask() -> int:
            asking = asyncio.create_task(session.answer_async(IMAGE, "w8", roi=None, max_new_tokens=4))
            await asyncio.sleep(0.05)
            assert not asking.done()
            go_on.set()  # only this thread does
            return len((await asking).token_ids)

        assert asyncio.run(ask()) == 4

    def test_cancelling_the_task_ends_the_answer(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS), max_batch=1)

        async def ask() -> None:
            pieces = session.stream_async(IMAGE, "w8", roi=None, max_new_tokens=200)
            reading = asyncio.create_task(_first(pieces, 3))
            await reading
            asking = asyncio.create_task(session.answer_async(IMAGE, "w8", roi=None, max_new_tokens=200))
            await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        asyncio.run(ask())
        assert begun(session).finish().token_ids == TOKENS * 2
        assert session._scheduler._running == []

    def test_failures_are_raised(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))
        with pytest.raises(BadInput, match="max_new_tokens is 0"):
            asyncio.run(session.answer_async(IMAGE, "w8", roi=None, max_new_tokens=0))
        session.close()
        with pytest.raises(RunFailed, match="the session was closed; open it again"):
            asyncio.run(session.answer_async(IMAGE, "w8", roi=None))

    def test_the_answer_is_there_at_the_end_only(self, sessions: Sessions) -> None:
        session = sessions.open(script_of(*TOKENS))

        async def ask() -> str:
            stream = session.stream_async(IMAGE, "w8", roi=None, max_new_tokens=4)
            with pytest.raises(RunFailed, match="not complete"):
                _ = stream.answer
            pieces = [piece async for piece in stream]
            assert "".join(pieces) == stream.answer.text
            return stream.answer.text

        assert len(asyncio.run(ask()).split()) == 4


async def _first(pieces: Any, count: int) -> None:
    async for _ in pieces:
        count -= 1
        if count == 0:
            return
