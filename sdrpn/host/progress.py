"""How long work tells how far it is: a callable, which the command line shows as a bar and a program as it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

__all__ = ["Advance", "Grown", "ShowProgress", "show_nothing", "uncounted", "unseen"]

# (done, total), in bytes or whatever the function that takes it counts.
Advance: TypeAlias = Callable[[int, int], None]
# (bytes) -> None: so many more are done; whoever draws a bar adds them up.
Grown: TypeAlias = Callable[[int], None]
# (title, what is counted, None for bytes) -> a block of work that says how far it is.
ShowProgress: TypeAlias = Callable[[str, str | None], AbstractContextManager[Advance]]


def unseen(done: int, total: int) -> None:
    """Nobody is shown how far the work is."""


def uncounted(size_bytes: int) -> None:
    """Nobody counts the bytes."""


@contextmanager
def show_nothing(title: str, unit: str | None = None) -> Iterator[Advance]:
    """Work of several parts, none of which is shown."""
    yield unseen
