"""Text in pictures: wrapped to as many lines as it needs, or cut to one. Pillow only; knows nothing about the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from PIL import ImageFont

__all__ = ["Font", "fitted_line", "font", "line_height", "wrapped"]

Font: TypeAlias = Any  # Pillow's fonts share no base class


def font(size_px: int) -> Font:
    """Pillow's default font in a size."""
    return ImageFont.load_default(size_px)


def line_height(of: Font) -> int:
    """Distance between the baselines of two lines, in pixels."""
    return round(1.25 * float(of.size))


def fitted_line(text: str, ending: str, fits: Callable[[str], bool]) -> str:
    """The text and what follows it; where both do not fit, the text is cut first, and an ellipsis says so."""
    alone = ending.strip()
    lines = (
        text + ending,
        *(f"{text[:length].rstrip()}…{ending}" for length in range(len(text) - 1, 0, -1)),
        alone,
        *(f"{alone[:length].rstrip()}…" for length in range(len(alone) - 1, 0, -1)),
    )
    return next(filter(fits, lines), "")


def wrapped(text: str, of: Font, width_px: int) -> list[str]:
    """Wrap a text to lines of at most `width_px`, breaking between words and inside a word only if it exceeds a line.

    Any run of white space becomes one space. Returns at least one line, which may be empty.
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if of.getlength(longer) <= width_px:
            lines[-1] = longer
            continue
        *whole, last = _broken(word, of, width_px)
        lines = [*filter(None, lines), *whole, last]
    return lines


def _broken(word: str, of: Font, width_px: int) -> list[str]:
    """Split a word into pieces that fit, each of at least one character."""
    pieces = [""]
    for character in word:
        if pieces[-1] and of.getlength(pieces[-1] + character) > width_px:
            pieces.append("")
        pieces[-1] += character
    return pieces
