"""How long-running work reports its progress: a callable, which the command line shows as a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

__all__ = ["Advance", "Grown", "ShowProgress", "counting", "show_nothing", "uncounted", "unseen"]

# (done, total), in bytes or in the unit of the function that calls it.
Advance: TypeAlias = Callable[[int, int], None]
# (bytes) -> None: called with the bytes done since the last call; the progress bar adds them up.
Grown: TypeAlias = Callable[[int], None]
# (title, unit, None for bytes) -> a context manager around work that reports its progress.
ShowProgress: TypeAlias = Callable[[str, str | None], AbstractContextManager[Advance]]


def unseen(done: int, total: int) -> None:
    """Ignores the progress."""


def uncounted(size_bytes: int) -> None:
    """Ignores the bytes."""


def counting(advance: Advance, total: int) -> Grown:
    """A function that adds up the bytes that it is called with, and reports them as done of `total`."""
    done = 0

    def grown(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        advance(min(done, total), total)

    return grown


@contextmanager
def show_nothing(title: str, unit: str | None = None) -> Iterator[Advance]:
    """Progress of work in several parts, ignored."""
    yield unseen
