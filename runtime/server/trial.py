"""Tries a bundle: at a start, and opened again in a thread that a graph which never ends may keep. No requests here."""

from __future__ import annotations

import asyncio
import faulthandler
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sdrpn.errors import Cancelled, RunFailed
from sdrpn.runtime.server.watchdog import GRACE_S, end_unless_called_again, pulse_s
from sdrpn.runtime.session import Session

__all__ = ["Trial", "TrialLimit", "try_model"]

_SIDE_PX = 64
_QUESTION = "what is this ?"


@dataclass(frozen=True)
class TrialLimit:
    """after_s: a graph that takes longer is stuck, and asked to end. grace_s: how long it is waited for after that."""

    after_s: float
    grace_s: float = GRACE_S


class Trial:
    """A session that is opened and tried, from now on. One that is given up is closed when its graph ends, if ever."""

    def __init__(self, reopen: Callable[[], Session], accept: Callable[[Session], None], limit: TrialLimit) -> None:
        """Args: accept: called in the same thread with the session that answered; may raise"""
        self._reopen, self._accept, self._limit = reopen, accept, limit
        self._session: Session | None = None
        self._result: Future[Session] = Future()
        self._result.set_running_or_notify_cancel()
        # A daemon: the process can end beside a graph that does not.
        threading.Thread(target=self._run, name="sdrpn trial", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """The thread is free again."""
        return self._result.done()

    async def session(self) -> Session:
        """The session once it has answered. Raises what failed; RunFailed where a graph ran too long."""
        waiting, most_s = asyncio.wrap_future(self._result), self._limit.after_s + self._limit.grace_s
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=pulse_s(self._limit.after_s))
            running_s = self._running_s()
            if running_s > most_s and not waiting.done():
                self._result.add_done_callback(_close)
                waiting.cancel()  # the thread goes on
                raise RunFailed(_endless(running_s))
        return waiting.result()

    def _running_s(self) -> float:
        """How long the current graph has run; 0: none does."""
        return 0.0 if self._session is None else self._session.load.unit_s

    def _run(self) -> None:
        try:
            opened = self._reopen()
            self._session = opened
            try:
                try_model(opened, self._limit)
                self._accept(opened)
            except BaseException:
                opened.close()
                raise
        except BaseException as error:  # raised again where the result is awaited
            self._result.set_exception(error)
        else:
            self._result.set_result(opened)


def try_model(session: Session, limit: TrialLimit, give_up: Callable[[str], None] | None = None) -> None:
    """Look and answer once. Raises what fails; RunFailed where a graph ran too long, and could be ended.

    Args: give_up: called in another thread with one line where a graph did not end in spite of that, and ends the
    process; where Python itself no longer runs, the interpreter ends it. None: such a graph is waited for.
    """
    picture = np.full((_SIDE_PX, _SIDE_PX, 3), 128, np.uint8)
    with _ended_after(limit, session, give_up):
        if session.spec.rpn is not None:
            session.look(picture, _QUESTION)
        session.answer(picture, _QUESTION, roi=None, max_new_tokens=2)
    session.forget_image()


@contextmanager
def _ended_after(limit: TrialLimit, session: Session, give_up: Callable[[str], None] | None) -> Iterator[None]:
    """Graphs that run longer in the block are asked to end; and the process, as `try_model` describes."""
    done, asked = threading.Event(), threading.Event()
    after_s, most_s = limit.after_s, limit.after_s + limit.grace_s

    def watch() -> None:
        while not done.wait(pulse_s(after_s)):
            running_s = session.load.unit_s
            if give_up is not None:
                end_unless_called_again(most_s + limit.grace_s)
            if running_s > after_s:
                asked.set()
                session.cancel()
            if running_s > most_s and give_up is not None:
                give_up(_endless(running_s))

    if give_up is not None:
        end_unless_called_again(most_s + limit.grace_s)
    watching = threading.Thread(target=watch, name="sdrpn trial's limit", daemon=True)
    watching.start()
    try:
        yield
    except Cancelled as error:
        if not asked.is_set():
            raise
        raise RunFailed(f"a graph of the trial ran for longer than {after_s:g} s, and was ended") from error
    finally:
        done.set()
        watching.join()
        if give_up is not None:
            faulthandler.cancel_dump_traceback_later()


def _endless(running_s: float) -> str:
    return f"a graph of the trial has run for {running_s:.1f} s, and cannot be ended"


def _close(result: Future[Session]) -> None:
    if result.exception() is None:
        result.result().close()
