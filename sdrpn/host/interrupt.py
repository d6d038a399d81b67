"""Stop native code on the main thread when a signal arrives. Standard library only; knows no graph.

Python runs signal handlers on the main thread, between two bytecode instructions: while a library computes there,
Ctrl-C waits until it is done. So a second thread learns of the signal, through the file descriptor that Python writes
signals to, and makes the library stop; then the main thread returns to Python and the handler raises.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType, ModuleType
from typing import NoReturn

__all__ = ["Cancellation", "SignalWatch", "import_library", "raising_on_signals", "signals_held"]

# How long the main thread may stay in native code after a signal, before a program ends its process.
GRACE_S = 0.7
Raise = Callable[[], NoReturn]


class Cancellation:
    """A request, from any thread, that the current run stops. It stays set until `reset`."""

    def __init__(self, on_change: Callable[[bool], None] = lambda wished: None) -> None:
        """Args: on_change: called with the new state, on the thread that changes it"""
        self._on_change = on_change
        self.wished = False

    def cancel(self) -> None:
        """Request that the current run stops."""
        self.wished = True
        self._on_change(True)

    def reset(self) -> None:
        """Clear the request, before the next run."""
        if self.wished:
            self.wished = False
            self._on_change(False)


class SignalWatch:
    """Context manager around native code: a signal whose handler raises stops it through `end`.

    Does nothing outside the main thread, and nothing within another watch. Reusable.
    """

    def __init__(self, end: Callable[[], None], restart: Callable[[], None] = lambda: None) -> None:
        """Args:
        end: makes the native code return; called from another thread, at most once per use
        restart: undoes `end`, before the next run
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
        """Stop the native code; called by the listening thread."""
        self.ended = True
        self._end()


@contextmanager
def raising_on_signals(handlers: Mapping[int, Raise], give_up: Callable[[int], None]) -> Iterator[None]:
    """For a program: signals raise an exception, stop native code, and as a last resort end the process.

    Signals that this process ignores stay ignored. Outside the main thread nothing is changed.

    Args:
        handlers: what to raise on the main thread, by signal
        give_up: called from another thread where the main thread did not return in time; must end the process
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


@contextmanager
def signals_held() -> Iterator[None]:
    """Let what is written here be whole: Ctrl-C and SIGTERM wait for the end of the block; a second one does not.

    Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            ours[signal.Signals(number)](number, frame)
        held.append(number)

    try:
        for number in ours:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def import_library(name: str) -> ModuleType:
    """Import a library of native code. A signal waits for it: while such a library is set up, it may drop an exception.

    Raises as `importlib.import_module`, and what a signal raises.
    """
    with signals_held():
        return import_module(name)


class _Listener:
    """The thread that waits for signals, and the watch that it stops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watch: SignalWatch | None = None
        self._raising: Mapping[int, object] = {signal.SIGINT: signal.default_int_handler}
        self._raised: threading.Event | None = None
        self._give_up: Callable[[int], None] = lambda number: None
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self._others = -1  # the file descriptor that signals were written to before; they are passed on
        threading.Thread(target=self._listen, name="sdrpn signals", daemon=True).start()

    def begin(self, raising: Mapping[int, object], raised: threading.Event, give_up: Callable[[int], None]) -> None:
        """Listen until `finish`; call `give_up` where `raised` is not set in time after a signal."""
        self._raising, self._raised, self._give_up = raising, raised, give_up
        self._install()

    def finish(self) -> None:
        """Stop listening except inside watches."""
        signal.set_wakeup_fd(self._others)
        with self._lock:
            self._heard()  # a signal that was handled must not count for the next command
            self._raising, self._raised = {signal.SIGINT: signal.default_int_handler}, None

    def enter(self, watch: SignalWatch) -> bool:
        """Start listening; False where another watch is active already.

        Signals from before are raised before the native code begins: they stop nothing.
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
        """Stop listening: the watched code has returned."""
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
                # Taken now: another command may begin while this thread waits.
                raised, give_up = self._raised, self._give_up
                if numbers and self._watch is not None:
                    self._watch.end()
            if numbers and raised is not None and not raised.wait(GRACE_S):
                give_up(numbers[0])

    def _heard(self) -> list[int]:
        """The signals that will raise on the main thread; passes all of them on to the previous listener."""
        try:
            numbers = os.read(self._reader, 64)
        except BlockingIOError:  # the other thread has read them
            return []
        if self._others >= 0:
            with suppress(OSError):
                os.write(self._others, numbers)
        # Other handlers may return normally, so the native code must not be stopped for them.
        raising = self._raising
        return [number for number in numbers if number in raising and signal.getsignal(number) == raising[number]]


_the_listener: _Listener | None = None


def _listener() -> _Listener:
    """The listener, created on first use, on the main thread."""
    global _the_listener
    if _the_listener is None:
        _the_listener = _Listener()
    return _the_listener


def _forget_in_child() -> None:
    """Reset the listener in a forked process: it has no other threads, and must not write to the parent's pipe."""
    global _the_listener
    if _the_listener is not None:
        _the_listener = None
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
