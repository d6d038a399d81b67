"""Opens a bundle again and tries it, in a thread that a graph which never ends may keep. Knows no requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from sdrpn.errors import Cancelled, RunFailed
from sdrpn.runtime.server.watchdog import GRACE_S, pulse_s
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

    def __init__(self, reopen: Callable[[], Session], accept: Callable[[Session], None]) -> None:
        """Args: accept: called in the same thread with the session that answered; may raise"""
        self._reopen, self._accept = reopen, accept
        self._session: Session | None = None
        self._result: Future[Session] = Future()
        self._result.set_running_or_notify_cancel()
        # A daemon: the process can end beside a graph that does not.
        threading.Thread(target=self._run, name="sdrpn trial", daemon=True).start()

    @property
    def is_over(self) -> bool:
        """The thread is free again."""
        return self._result.done()

    async def session(self, limit: TrialLimit) -> Session:
        """The session once it has answered. Raises what failed; RunFailed where a graph ran too long."""
        waiting = asyncio.wrap_future(self._result)
        asked = False
        while True:
            await asyncio.wait({waiting}, timeout=pulse_s(limit.after_s))
            if waiting.done():
                break
            running_s = self._running_s()
            if running_s > limit.after_s + limit.grace_s:
                self._result.add_done_callback(_close)
                waiting.cancel()  # the thread goes on
                raise RunFailed(f"a graph of its trial has run for {running_s:.1f} s, and cannot be ended")
            if running_s > limit.after_s and self._session is not None:
                asked = True
                self._session.cancel()
        try:
            return waiting.result()
        except Cancelled as error:
            if not asked:
                raise
            raise RunFailed(f"a graph of its trial ran for longer than {limit.after_s:g} s, and was ended") from error

    def _running_s(self) -> float:
        """How long the current graph has run; 0: none does."""
        return 0.0 if self._session is None else self._session.load.unit_s

    def _run(self) -> None:
        try:
            opened = self._reopen()
            self._session = opened
            try:
                try_model(opened)
                self._accept(opened)
            except BaseException:
                opened.close()
                raise
        except BaseException as error:  # raised again by whoever waits
            self._result.set_exception(error)
        else:
            self._result.set_result(opened)


def try_model(session: Session) -> None:
    """Look and answer once. Raises what fails."""
    picture = np.full((_SIDE_PX, _SIDE_PX, 3), 128, np.uint8)
    if session.spec.rpn is not None:
        session.look(picture, _QUESTION)
    session.answer(picture, _QUESTION, roi=None, max_new_tokens=2)
    session.forget_image()


def _close(result: Future[Session]) -> None:
    if result.exception() is None:
        result.result().close()
