"""Text in pictures: whole, in as many lines as it needs. Pillow only; knows nothing of what is written."""

from __future__ import annotations

from typing import Any, TypeAlias

from PIL import ImageFont

__all__ = ["Font", "font", "line_height", "wrapped"]

Font: TypeAlias = Any  # Pillow's fonts share no base class


def font(size_px: int) -> Font:
    """Pillow's own."""
    return ImageFont.load_default(size_px)


def line_height(of: Font) -> int:
    """From one line to the next, in pixels."""
    return round(1.25 * float(of.size))


def wrapped(text: str, of: Font, width_px: int) -> list[str]:
    """Lines that are no wider: broken between words, and inside one only where it is wider than a line by itself.

    White space of any kind is one space. At least one line, which may be empty.
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
    """A word in pieces that fit, of at least one character."""
    pieces = [""]
    for character in word:
        if pieces[-1] and of.getlength(pieces[-1] + character) > width_px:
            pieces.append("")
        pieces[-1] += character
    return pieces
