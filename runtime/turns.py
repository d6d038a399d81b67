"""Whose turn it is on a session that several threads use: one answer at a time, whoever comes waits. Runs nothing.

An answer keeps its turn until it is complete. A stream that nobody reads on must not stop the others for ever, so
between two of its tokens its turn can be taken over: at once by the thread that read it last, which would wait for
itself, and where that thread has ended; by other threads after `idle_s` without a token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sdrpn.errors import Cancelled, RunFailed

__all__ = ["Turn", "Turns"]


class Turns:
    """One turn at a time; the next begins when the last one ended or was taken over."""

    def __init__(self, idle_s: float) -> None:
        """Args: idle_s: how long a turn is kept between two steps while another thread waits for it"""
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._current: Turn | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether there are no more turns."""
        return self._closed

    def begin(self) -> Turn:
        """Wait for a turn. Raises RunFailed after `close`, and inside of a step of the same thread."""
        with self._changed:
            while not self._closed and (wait_s := self._wait_s()) != 0:
                self._changed.wait(wait_s)
            self.require_open()
            self._current = Turn(self)
            return self._current

    def close(self) -> None:
        """Wait for the step that is being made, and let nothing begin or go on after it."""
        with self._changed:
            self._refuse_inside_a_step()
            self._closed = True
            self._changed.notify_all()
            while self._current is not None and self._current.busy:
                self._changed.wait()
            self._current = None

    def cancel(self, turn: Turn | None = None) -> bool:
        """Let no further step of the turn (None: of the current one) begin; whether one is being made right now."""
        with self._changed:
            current = self._current
            if current is None or turn not in (None, current):
                return False
            current.cancelled = True
            return current.busy

    def require_open(self) -> None:
        """Raises RunFailed after `close`."""
        if self._closed:
            raise RunFailed("the session was closed; open it again")

    def _wait_s(self) -> float | None:
        """0: a turn may begin; None: as long as a step takes."""
        current = self._current
        if current is None:
            return 0
        self._refuse_inside_a_step()
        if current.busy:
            return None
        if current.thread is threading.current_thread() or not current.thread.is_alive():
            return 0
        return max(0.0, current.idle_since_s + self._idle_s - time.monotonic())

    def _refuse_inside_a_step(self) -> None:
        current = self._current
        if current is not None and current.busy and current.thread is threading.current_thread():
            raise RunFailed("this thread is in the middle of an answer of the same session; let it end first")


class Turn:
    """The right to run graphs, step by step."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.busy = self.cancelled = False
        self.thread = threading.current_thread()  # that made the last step
        self.idle_since_s = time.monotonic()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Nothing else runs inside. Raises RunFailed where the turn was taken over or the session closed, Cancelled."""
        changed = self._turns._changed
        with changed:
            while self.busy and self._turns._current is self:  # by another thread that reads the same stream
                changed.wait()
            self._require_current()
            self.busy, self.thread = True, threading.current_thread()
        try:
            yield
        finally:
            with changed:
                self.busy, self.idle_since_s = False, time.monotonic()
                changed.notify_all()

    def end(self) -> None:
        """Let the next one begin; calling it again does no harm."""
        with self._turns._changed:
            if self._turns._current is self:
                self._turns._current = None
                self._turns._changed.notify_all()

    def require_uncancelled(self) -> None:
        """Raises Cancelled; for steps that take long."""
        if self.cancelled:
            raise Cancelled("the answer was cancelled; ask again")

    def _require_current(self) -> None:
        self._turns.require_open()
        self.require_uncancelled()
        if self._turns._current is not self:
            raise RunFailed(
                "another question was asked before this answer was complete; finish one stream at a time, or read on "
                f"within {self._turns._idle_s:g} s"
            )
