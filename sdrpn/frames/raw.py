"""What a source gives: frames whose pixels are made when somebody needs them. Knows no threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from sdrpn.frames.frame import Pixels

__all__ = ["OpenSource", "Opener", "RawFrame"]


@dataclass(frozen=True, eq=False)
class RawFrame:
    """One frame before its conversion to RGB, which costs more than decoding it and is wasted on a frame left out.

    pixels: makes the array; raises BadImage. time_s: seconds since the source's first frame, where it has a time.
    name, index: of the file that it comes from, where a source is several files; else the source's own.
    whole: False: torn, as before a stream's first key frame; it shows that the source lives, and is not looked at.
    """

    pixels: Callable[[], Pixels]
    time_s: float | None = None
    name: str | None = None
    index: int | None = None
    whole: bool = True


class OpenSource(Protocol):
    """An opened source; one thread reads and closes it."""

    @property
    def live(self) -> bool:
        """Whether it goes on while nobody reads: a camera, a stream."""

    def frames(self) -> Iterator[RawFrame]:
        """Every frame in order. Raises BadInput for damage, and where a live source breaks off."""

    def close(self) -> None:
        """Free what it holds; twice does no harm."""


Opener = Callable[[], OpenSource]  # raises BadInput where there is nothing to open
