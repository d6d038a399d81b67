"""One source, read by a thread of its own: opened again where it breaks off, given up where it stays away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sdrpn.errors import BadInput, RunFailed, SdrpnError
from sdrpn.frames.mailbox import Mailbox
from sdrpn.frames.raw import Opener, OpenSource, RawFrame
from sdrpn.frames.thinning import ReadOptions, Thinning

__all__ = ["Arrived", "Reader"]

Clock = Callable[[], float]
RETRY_S = 0.5  # between tries to open a source that broke off
_NAP_S = 0.1  # how long a thread sleeps before it asks whether it should go on
_MOST_SPEED = 4.0  # of a live stream whose first frames wait in a buffer
_SLACK_S = 1.0  # what a library may take to notice that its own time limit is over


@dataclass(frozen=True, eq=False)
class Arrived:
    """A frame that waits to be looked at."""

    raw: RawFrame
    index: int
    time_s: float | None
    at_s: float  # of the clock


class _Speed:
    """How fast one connection gives its frames: a finished video comes faster than it was recorded."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None  # of the clock, and the frame's own time
        self._last_s = 0.0

    def add(self, now_s: float, time_s: float | None) -> None:
        """A frame came. `now_s` leaves out what was spent waiting for the taker."""
        if time_s is not None:
            self._first = self._first or (now_s, time_s)
            self._last_s = time_s

    def is_live(self, now_s: float) -> bool:
        """Whether what came until now may have been recorded while it came."""
        if self._first is None:
            return True
        begun_s, first_s = self._first
        return self._last_s - first_s <= _MOST_SPEED * (now_s - begun_s)


class _Attempt:
    """One thread's turn at a source. A thread that hangs in a library is left behind: its attempt is not current."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s  # until when it must show life; infinite: it need not
        self.speed = _Speed()


class Reader:
    """Reads frames into a box until the source ends, `stop` is called, or it has been away for too long."""

    def __init__(
        self,
        name: str,
        opener: Opener,
        changed: threading.Condition,
        options: ReadOptions,
        *,
        live: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        """Args:
        name: how messages and frames name the source
        changed: notified when there is a frame, an end or an error
        live: whether it is a camera or a stream, before it is open
        """
        self.name = name
        self._opener, self._changed, self._options, self._clock = opener, changed, options, clock
        self._live, self._thinning = live, Thinning(options)
        self.box: Mailbox[Arrived] = Mailbox(changed, newest_only=options.drops(live))
        self._index = 0
        self._first_s: float | None = None  # of the clock: the first frame
        self._last_s = 0.0
        self._away = False  # it broke off, and no frame came since
        self._again_s: float | None = None  # since when it gives a finished video again and again
        self._waited_s = 0.0  # for the taker
        self._pace: tuple[float, float] | None = None  # a frame's time, and when it was due
        self._ended = False
        self.error: SdrpnError | None = None
        self.notes: list[str] = []  # taken by the consumer
        self.reconnects = 0
        self.gave_up = False
        self._attempt: _Attempt | None = None
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Frames that were replaced by newer ones."""
        return self.box.dropped

    @property
    def begun(self) -> bool:
        """Whether a frame came."""
        return self._first_s is not None

    @property
    def over(self) -> bool:
        """Whether no further frame comes; with the condition held."""
        return self._ended and not self.box

    def start(self) -> None:
        """Begin to read."""
        self._attempt = attempt = _Attempt(self._deadline(self._options.open_timeout_s))
        self._thread = threading.Thread(
            target=self._read, args=(attempt,), name=f"sdrpn reads {self.name}", daemon=True
        )
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to close its source, after `stop`: not for one that hangs in a library."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def stop(self) -> None:
        """No further frame is wanted."""
        with self._changed:
            self._attempt = None
            self._ended = True
            self._changed.notify_all()

    def check(self) -> None:
        """Called by the consumer with the condition held: abandon a thread that hangs in a library."""
        attempt = self._attempt
        if self._ended or attempt is None:
            return
        if self._is_given_up():
            self._is_lost(attempt, "it does not answer")
            return
        if self._clock() <= attempt.deadline_s:
            return
        if self._first_s is None:
            self._fail(BadInput(f"{self.name} does not answer within {self._options.open_timeout_s:g} s"))
        elif self._is_lost(attempt, "it gives no frames and no error"):
            self.start()

    # --- on the reading thread

    def _read(self, attempt: _Attempt) -> None:
        while self._is_current(attempt):
            try:
                self._read_once(attempt)
                problem = "the stream ended"
            except SdrpnError as error:
                problem = str(error)
                self._failed(attempt, error)
            except Exception as error:  # a library's own, which nobody else would report
                self._failed(attempt, RunFailed(f"reading {self.name} failed: {type(error).__name__}: {error}"))
                problem = str(error)
            with self._changed:
                if not self._is_current(attempt) or not self._is_lost(attempt, problem):
                    return
                attempt.deadline_s = self._deadline(RETRY_S + self._options.open_timeout_s)
                attempt.speed = _Speed()
                self._changed.wait_for(lambda: not self._is_current(attempt), RETRY_S)

    def _read_once(self, attempt: _Attempt) -> None:
        """Open it and read to its end."""
        opened = self._opener()
        try:
            self._begin(attempt, opened)
            for raw in opened.frames():
                if not self._is_current(attempt):
                    return
                self._hand_over(attempt, raw)
        finally:
            with suppress(Exception):
                opened.close()

    def _begin(self, attempt: _Attempt, opened: OpenSource) -> None:
        with self._changed:
            if not self._is_current(attempt):
                return
            if opened.live != self._live:  # a URL is known to be a file only when it is open
                self._live = opened.live
                self.box = Mailbox(self._changed, newest_only=self._options.drops(opened.live))
            attempt.deadline_s = self._deadline(self._options.read_timeout_s)

    def _hand_over(self, attempt: _Attempt, raw: RawFrame) -> None:
        now_s = self._clock()
        attempt.deadline_s = self._deadline(self._options.read_timeout_s)
        if not raw.whole:
            return
        attempt.speed.add(now_s - self._waited_s, raw.time_s)
        self._first_s = now_s if self._first_s is None else self._first_s
        self._last_s = now_s
        if self._away:
            self._came_back()
        index, self._index = self._index, self._index + 1
        time_s = now_s - self._first_s if self._live else raw.time_s
        if not self._thinning.takes(time_s):
            return
        if self._options.drop and not self._live:
            self._wait_for_its_time(attempt, raw.time_s)
        arrived = Arrived(raw, index, time_s, self._clock())
        self.box.put(arrived, lambda: self._goes_on(attempt))
        self._waited_s += self._clock() - arrived.at_s

    def _came_back(self) -> None:
        with self._changed:
            self._away = False
            self.reconnects += 1
            if self._again_s is None:
                self.notes.append(f"{self.name} is back")

    def _wait_for_its_time(self, attempt: _Attempt, time_s: float | None) -> None:
        """A file that is played at its own speed."""
        if time_s is None:
            return
        if self._pace is None or time_s < self._pace[0]:  # the first frame, or that of the next file
            self._pace = time_s, self._clock()
        due_s = self._pace[1] + time_s - self._pace[0]
        while self._is_current(attempt) and (early_s := due_s - self._clock()) > 0:
            time.sleep(min(early_s, _NAP_S))

    def _goes_on(self, attempt: _Attempt) -> bool:
        attempt.deadline_s = self._deadline(self._options.read_timeout_s)  # it waits for us, not for the source
        return self._is_current(attempt)

    def _failed(self, attempt: _Attempt, error: SdrpnError) -> None:
        with self._changed:
            if self._is_current(attempt) and not (self._live and self._first_s is not None):
                self._fail(error)

    # --- with the condition held

    def _fail(self, error: SdrpnError) -> None:
        self.error, self._ended, self._attempt = error, True, None
        self._changed.notify_all()

    def _is_lost(self, attempt: _Attempt, problem: str) -> bool:
        """A source gave its last frame for now. Returns whether it is opened again."""
        if self._live and self._first_s is not None:
            problem = problem.removeprefix(f"{self.name} broke off: ").removeprefix(f"{self.name} ")
            note = self._note_of_loss(attempt, problem)
            if not self._is_given_up():
                self.notes += note
                return True
            self.gave_up = True
            gave, reason = "gave no frame", f": {problem}"
            if self._again_s is not None:
                gave, reason = "gave a finished video again and again", "; copy it, and name the file"
            self.notes.append(f"{self.name} {gave} for {self._options.give_up_s:g} s and is given up{reason}")
        self._ended, self._attempt = True, None
        self._changed.notify_all()
        return False

    def _note_of_loss(self, attempt: _Attempt, problem: str) -> list[str]:
        """It is away from now on; what there is to say of that."""
        was_away, self._away = self._away, True
        if not attempt.speed.is_live(self._clock() - self._waited_s):
            was_again, self._again_s = self._again_s is not None, self._again_s or self._clock()
            ended = f"{self.name} ended ({problem}), and came faster than live; it is opened again"
            return [] if was_again else [ended]
        if was_away:
            return []
        self._again_s = None
        return [f"{self.name} broke off ({problem}); it is opened again"]

    def _is_given_up(self) -> bool:
        """Whether it was away, or gave nothing that is new, for too long."""
        since_s = self._last_s if self._again_s is None else self._again_s
        return self._away and self._clock() - since_s >= self._options.give_up_s

    def _is_current(self, attempt: _Attempt) -> bool:
        return self._attempt is attempt

    def _deadline(self, seconds: float) -> float:
        return self._clock() + seconds + _SLACK_S if self._live else float("inf")
