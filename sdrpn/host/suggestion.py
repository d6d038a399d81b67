"""Suggestions for mistyped names. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["did_you_mean", "did_you_mean_path", "unknown_choice"]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest known name, to append to a message; empty where none is close."""
    by_lower = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[nearest[0]]}?" if nearest else ""


def unknown_choice(value: object, known: Iterable[object]) -> str:
    """What is wrong with a value that is none of the known ones, and which one was probably meant."""
    names = [str(choice) for choice in known]
    return f"{value!r} is unknown; expected one of {', '.join(names)}{did_you_mean(str(value), names)}"


def did_you_mean_path(path: Path, also: Iterable[str] = ()) -> str:
    """`did_you_mean` for a path that does not exist, from the names in its folder and `also`."""
    try:
        beside = [neighbour.name for neighbour in path.parent.iterdir()]
    except OSError:
        beside = []
    return did_you_mean(path.name, [*also, *beside])
