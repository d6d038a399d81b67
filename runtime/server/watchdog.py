"""Ends a process whose work is stuck, so that what started it starts it again. Knows no server and no model.

Work that is stuck is asked to end. If it has not ended a little later, or the event loop gives no sign of life, the
process ends with exit code 70 (EX_SOFTWARE). Where even Python no longer runs, as when a library keeps its lock, a
thread of the interpreter that needs no lock ends it with exit code 1, and writes where every thread was.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

__all__ = ["EXIT_CODE", "GRACE_S", "StuckWork", "Watchdog", "end_unless_called_again", "pulse_s"]

EXIT_CODE = 70
GRACE_S = 10.0
_LONGEST_CHECK_S = 1.0


@dataclass(frozen=True)
class StuckWork:
    """What is watched.

    after_s: work that takes longer is stuck. running_s: how long the current work has run; 0: there is none. cancel:
    asks it to end, from any thread. grace_s: for so long after that it may still end.
    """

    after_s: float
    running_s: Callable[[], float]
    cancel: Callable[[], None]
    grace_s: float = GRACE_S


class Watchdog:
    """Watches in a thread of its own within its block. `alive` has to be called by the event loop, often."""

    def __init__(
        self,
        work: StuckWork,
        note: Callable[[str], None] = lambda text: None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        """Args:
        note: called with one line before the work is asked to end, and before the end
        end: ends the process
        """
        self._work, self._note, self._end = work, note, end
        self._done, self._last_life = threading.Event(), time.monotonic()
        self._asked = False
        self._thread = threading.Thread(target=self._watch, name="sdrpn watchdog", daemon=True)

    @property
    def pulse_s(self) -> float:
        """How often the event loop should show life."""
        return pulse_s(self._work.after_s)

    def alive(self) -> None:
        """The event loop is not stuck."""
        self._last_life = time.monotonic()

    def check(self) -> None:
        """Look once at how things are."""
        work = self._work
        running_s, silent_s = work.running_s(), time.monotonic() - self._last_life
        most_s = work.after_s + work.grace_s
        if running_s <= work.after_s:
            self._asked = False
        elif not self._asked:
            self._asked = True
            self._note(f"a graph has run for {running_s:.1f} s and counts as stuck: its answers are ended")
            work.cancel()
        elif running_s > most_s:
            self._stop(f"a graph is stuck, and did not end within {work.grace_s:g} s")
        if silent_s > most_s:
            self._stop(f"the event loop has been stuck for {silent_s:.1f} s")

    def __enter__(self) -> Watchdog:
        self.alive()
        end_unless_called_again(self._longest_s)  # before the first request, which may be what gets stuck
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._done.wait(self.pulse_s):
            end_unless_called_again(self._longest_s)
            self.check()

    @property
    def _longest_s(self) -> float:
        return self._work.after_s + 2 * self._work.grace_s

    def _stop(self, why: str) -> None:
        self._note(f"{why}: the process ends with exit code {EXIT_CODE}")
        self._end(EXIT_CODE)


def end_unless_called_again(longest_s: float) -> None:
    """The interpreter's own thread ends the process if no thread of Python gets here again for so long."""
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(longest_s, exit=True, file=sys.__stderr__)


def pulse_s(after_s: float) -> float:
    """How often to look at work that is stuck when it takes longer than `after_s`."""
    return min(_LONGEST_CHECK_S, after_s / 4)
