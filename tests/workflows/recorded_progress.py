"""Progress that is written down instead of shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sdrpn.host.progress import Advance

__all__ = ["RecordedProgress"]


class RecordedProgress:
    """`ends`: how far each part of the work came, by its title: (done, total)."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, title: str, unit: str | None = None) -> Iterator[Advance]:
        """One part of the work."""

        def advance(done: int, total: int) -> None:
            self.ends[title] = done, total

        yield advance
