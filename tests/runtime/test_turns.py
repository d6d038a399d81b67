"""Turns: whoever comes waits, nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from sdrpn.errors import Cancelled, RunFailed
from sdrpn.runtime.turns import Turn, Turns

TIMEOUT_S = 60  # of what must not hang
NEVER_S = 1e6


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> None:
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


class TestWaiting:
    def test_a_turn_waits_for_the_one_before(self) -> None:
        turns, order = Turns(NEVER_S), list[str]()
        first = turns.begin()
        started = threading.Event()

        def second() -> None:
            started.set()
            turn = turns.begin()
            order.append("second")
            turn.end()

        thread = in_thread(second)
        assert started.wait(TIMEOUT_S)
        with first.step():
            order.append("first")
        first.end()
        joined(thread)
        assert order == ["first", "second"]

    def test_steps_never_overlap(self) -> None:
        turns, inside, most = Turns(NEVER_S), [0], [0]

        def work() -> None:
            for _ in range(20):
                turn = turns.begin()
                for _ in range(3):
                    with turn.step():
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                        threading.Event().wait(0.0005)
                        inside[0] -= 1
                turn.end()

        for thread in [in_thread(work) for _ in range(4)]:
            joined(thread)
        assert most == [1]

    def test_within_a_step_the_same_thread_is_refused_instead_of_waiting_for_itself(self) -> None:
        turns = Turns(NEVER_S)
        turn = turns.begin()
        with turn.step():
            for call in (turns.begin, turns.close):
                with pytest.raises(RunFailed, match="this thread is in the middle of an answer of the same session"):
                    call()
        turn.end()


class TestUnfinishedTurns:
    def test_the_thread_that_left_one_takes_it_over_at_once(self) -> None:
        turns = Turns(NEVER_S)
        left = turns.begin()
        turns.begin()
        with pytest.raises(RunFailed, match="another question was asked before this answer was complete"), left.step():
            pass

    def test_another_thread_takes_it_over_after_a_while(self) -> None:
        turns, taken = Turns(0.05), list[Turn]()
        left = turns.begin()
        joined(in_thread(lambda: taken.append(turns.begin())))
        with pytest.raises(RunFailed, match=r"or read on within 0\.05 s"), left.step():
            pass

    def test_that_of_a_thread_which_ended_is_free(self) -> None:
        turns, left = Turns(NEVER_S), list[Turn]()
        joined(in_thread(lambda: left.append(turns.begin())))
        turns.begin().end()

    def test_a_step_that_fails_lets_the_next_one_in(self) -> None:
        turns = Turns(NEVER_S)
        turn = turns.begin()
        with suppress(ZeroDivisionError), turn.step():
            raise ZeroDivisionError
        turn.end()
        joined(in_thread(lambda: turns.begin().end()))


class TestEnds:
    def test_closing_waits_for_the_step(self) -> None:
        turns, entered, leave = Turns(NEVER_S), threading.Event(), threading.Event()
        order: list[str] = []

        def work() -> None:
            turn = turns.begin()
            with turn.step():
                entered.set()
                leave.wait(TIMEOUT_S)
                order.append("step")
            with pytest.raises(RunFailed, match="the session was closed"), turn.step():
                pass

        def close() -> None:
            turns.close()
            order.append("closed")

        worker = in_thread(work)
        assert entered.wait(TIMEOUT_S)
        closer = in_thread(close)
        leave.set()
        joined(worker)
        joined(closer)
        assert order == ["step", "closed"]

    def test_closing_sends_those_away_that_wait(self) -> None:
        turns, errors = Turns(NEVER_S), list[str]()
        turn = turns.begin()

        def wait() -> None:
            try:
                turns.begin()
            except RunFailed as error:
                errors.append(str(error))

        thread = in_thread(wait)
        turns.close()
        joined(thread)
        assert errors == ["the session was closed; open it again"]
        turn.end()

    def test_a_cancelled_turn_makes_no_further_step(self) -> None:
        turns = Turns(NEVER_S)
        assert not turns.cancel()
        turn = turns.begin()
        assert not turns.cancel()  # no step is being made
        with pytest.raises(Cancelled, match="the answer was cancelled; ask again"), turn.step():
            pass
        turn.end()
        other = turns.begin()
        assert not turns.cancel(turn)
        with other.step():
            assert turns.cancel(other)
