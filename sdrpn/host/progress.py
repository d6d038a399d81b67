"""How long work tells how far it is: a callable, which the command line shows as a bar and a program as it likes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Advance", "unseen"]

# (done, total), in bytes or whatever the function that takes it counts.
Advance: TypeAlias = Callable[[int, int], None]


def unseen(done: int, total: int) -> None:
    """Nobody is shown how far the work is."""
