"""Limits of what a test waits for: a thread or a process that hangs fails the test, and not the whole run."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, AnyStr

__all__ = ["LIMIT_S", "ended_soon", "eventually", "killing_after", "line_of"]

LIMIT_S = 120.0  # of what takes a second, on a machine that is busy with other things


@contextmanager
def killing_after(process: subprocess.Popen[AnyStr], limit_s: float = LIMIT_S) -> Iterator[None]:
    """Kill a process if the block takes too long, so that reading from it ends."""
    timer = threading.Timer(limit_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def line_of(process: subprocess.Popen[AnyStr], stream: IO[AnyStr] | None) -> AnyStr:
    """The next line that a process prints; an empty one where it ended, or took too long."""
    assert stream is not None
    with killing_after(process):
        return stream.readline()


def ended_soon(thread: threading.Thread) -> None:
    """Wait for the end of a thread."""
    thread.join(LIMIT_S)
    assert not thread.is_alive(), f"{thread.name} did not end within {LIMIT_S:g} s"


def eventually(ready: Callable[[], object], pause_s: float = 0.005) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < deadline, f"not so within {LIMIT_S:g} s"
        time.sleep(pause_s)
