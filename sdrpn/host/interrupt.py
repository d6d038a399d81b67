"""End native code that holds the main thread when a signal comes. Standard library only; knows no graph.

Python runs its handlers on the main thread, between two of its own instructions: while a library computes there, Ctrl-C
waits until it is done. So a second thread hears of the signal, through the file descriptor that Python writes signals
to, and has the library end; then the main thread comes back and the handler raises.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

__all__ = ["Cancellation", "SignalWatch", "raising_on_signals"]

# How long the main thread may stay in native code behind a signal, where the process is ours to end.
GRACE_S = 0.7
Raise = Callable[[], NoReturn]


class Cancellation:
    """The wish of any thread that what runs may end. It stays until `reset`."""

    def __init__(self, on_change: Callable[[bool], None] = lambda wished: None) -> None:
        """Args: on_change: told of the wish, from the thread that states it"""
        self._on_change = on_change
        self.wished = False

    def cancel(self) -> None:
        """End what runs."""
        self.wished = True
        self._on_change(True)

    def reset(self) -> None:
        """Before something else runs."""
        if self.wished:
            self.wished = False
            self._on_change(False)


class SignalWatch:
    """Around native code: a signal whose handler raises ends it through `end`. Does nothing outside the main thread.

    May be entered again and again. Within another watch it does nothing: what that one ends is what runs.
    """

    def __init__(self, end: Callable[[], None], restart: Callable[[], None] = lambda: None) -> None:
        """Args:
        end: makes the native code return; called from another thread, at most once each time
        restart: undoes `end`, before what follows runs
        """
        self._end, self._restart = end, restart
        self._entered = self.ended = False

    def __enter__(self) -> SignalWatch:
        self.ended = False
        self._entered = threading.current_thread() is threading.main_thread() and _listener().enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        if self._entered:
            self._entered = False
            _listener().leave()
            if self.ended:
                self._restart()

    def end(self) -> None:
        """Of the listening thread."""
        self.ended = True
        self._end()


@contextmanager
def raising_on_signals(handlers: Mapping[int, Raise], give_up: Callable[[int], None]) -> Iterator[None]:
    """For a program: signals raise, end native code, and where that does not end, the process.

    Signals that this process was told to ignore stay ignored. Outside the main thread nothing is changed.

    Args:
        handlers: what to raise on the main thread, by signal
        give_up: called from another thread where the main thread did not come back to raise; must end the process
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised = threading.Event()

    def handler_of(raise_: Raise) -> Callable[[int, FrameType | None], NoReturn]:
        def handle(number: int, frame: FrameType | None) -> NoReturn:
            raised.set()
            raise_()

        return handle

    before = {number: signal.getsignal(number) for number in handlers}
    ours = {number: handler_of(handlers[number]) for number in handlers if before[number] != signal.SIG_IGN}
    listener = _listener()
    listener.begin(ours, raised, give_up)
    try:
        for number, handler in ours.items():
            signal.signal(number, handler)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
        listener.finish()


class _Listener:
    """The thread that hears of signals, and what it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: SignalWatch | None = None
        self._raising: Mapping[int, object] = {signal.SIGINT: signal.default_int_handler}
        self._raised: threading.Event | None = None
        self._give_up: Callable[[int], None] = lambda number: None
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self._others = -1  # where signals were written to before, which go on to be
        threading.Thread(target=self._listen, name="sdrpn signals", daemon=True).start()

    def begin(self, raising: Mapping[int, object], raised: threading.Event, give_up: Callable[[int], None]) -> None:
        """Listen until `finish`, and give up where `raised` is not set in time."""
        self._raising, self._raised, self._give_up = raising, raised, give_up
        self._install()

    def finish(self) -> None:
        """Listen only where native code is watched."""
        signal.set_wakeup_fd(self._others)
        with self._lock:
            self._heard()  # what raised already must not be taken for a signal to the next command
            self._raising, self._raised = {signal.SIGINT: signal.default_int_handler}, None

    def enter(self, watch: SignalWatch) -> bool:
        """Listen; False where another watch is at it already.

        Signals that came before raise before the native code begins: they end nothing.
        """
        if self._watch is not None:
            return False
        with self._lock:
            self._heard()
            self._watch = watch
        if self._raised is None:
            self._install()
        return True

    def leave(self) -> None:
        """What was watched is over: it cannot be ended any more."""
        with self._lock:
            self._watch = None
        if self._raised is None:
            signal.set_wakeup_fd(self._others)

    def _install(self) -> None:
        self._others = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _listen(self) -> None:
        ready = select.poll()
        ready.register(self._reader, select.POLLIN)
        while True:
            ready.poll()
            with self._lock:
                numbers = self._heard()
                # Those of the command that was sent the signal: another one may begin while this thread waits.
                raised, give_up = self._raised, self._give_up
                if numbers and self._watch is not None:
                    self._watch.end()
            if numbers and raised is not None and not raised.wait(GRACE_S):
                give_up(numbers[0])

    def _heard(self) -> list[int]:
        """Signals that will raise on the main thread; passes all on to who listened before."""
        try:
            numbers = os.read(self._reader, 64)
        except BlockingIOError:  # the other thread was quicker
            return []
        if self._others >= 0:
            with suppress(OSError):
                os.write(self._others, numbers)
        # Any other handler may go on afterwards, with results that nobody may have ended.
        return [one for one in numbers if one in self._raising and signal.getsignal(one) == self._raising[one]]


_the_listener: _Listener | None = None


def _listener() -> _Listener:
    """Made when it is first needed, on the main thread."""
    global _the_listener
    if _the_listener is None:
        _the_listener = _Listener()
    return _the_listener


def _forget_in_child() -> None:
    """A forked process has none of the other threads, and must not write into the parent's pipe."""
    global _the_listener
    if _the_listener is not None:
        _the_listener = None
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
