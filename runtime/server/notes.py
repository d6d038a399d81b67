"""What becomes known of a request while it runs, for its line in the log and its span in a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["note", "notes_of_request"]

_NOTES: ContextVar[dict[str, Any]] = ContextVar("sdrpn_notes")


@contextmanager
def notes_of_request() -> Iterator[dict[str, Any]]:
    """What `note` adds in the block, and in tasks that it starts; within another block, the same notes."""
    notes = _NOTES.get(None)
    if notes is not None:
        yield notes
        return
    notes = {}
    before = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(before)


def note(**entries: Any) -> None:
    """Remember something of the request that runs; outside one, nothing happens."""
    notes = _NOTES.get(None)
    if notes is not None:
        notes.update(entries)
