"""Sources that do what a test says: frames of one number each, ends, errors, and reads that hang."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sdrpn.errors import BadInput
from sdrpn.frames.frame import Pixels
from sdrpn.frames.raw import RawFrame

__all__ = ["FakeSource", "Script", "flat", "in_turn", "number_of"]

PATIENCE_S = 30.0  # how long a test waits for another thread before it fails


def flat(number: int, side: int = 8) -> Pixels:
    """A frame that is one grey, by which it is known again."""
    return np.full((side, side, 3), number % 256, np.uint8)


def number_of(pixels: Pixels) -> int:
    return int(pixels[0, 0, 0])


class Script:
    """What a test and the reading thread agree on: frames that are given one by one, when the test says so."""

    def __init__(self) -> None:
        self._turns = threading.Semaphore(0)
        self.given = 0
        self.closed = 0

    def allow(self, frames: int = 1) -> None:
        for _ in range(frames):
            self._turns.release()

    def wait(self) -> None:
        assert self._turns.acquire(timeout=PATIENCE_S)


class FakeSource:
    """Frames with these numbers, then an end, or an error."""

    def __init__(
        self,
        numbers: Iterable[int],
        *,
        live: bool = False,
        times_s: Sequence[float] | None = None,
        error: str | None = None,
        script: Script | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._numbers, self.live, self._times_s, self._error = numbers, live, times_s, error
        self._script, self._at_end = script, at_end
        self.closed = threading.Event()

    def frames(self) -> Iterator[RawFrame]:
        for place, number in enumerate(self._numbers):
            if self._script is not None:
                self._script.wait()
            time_s = None if self._times_s is None else self._times_s[place]
            yield RawFrame(lambda number=number: flat(number), time_s)  # type: ignore[misc]
        self._at_end()
        if self._error is not None:
            raise BadInput(self._error)

    def close(self) -> None:
        self.closed.set()


def in_turn(*sources: FakeSource | BadInput) -> Callable[[], FakeSource]:
    """An opener that gives these one after the other, and then refuses."""
    left = list(sources)

    def opener() -> FakeSource:
        if not left:
            raise BadInput("nothing is there")
        source = left.pop(0)
        if isinstance(source, BadInput):
            raise source
        return source

    return opener
