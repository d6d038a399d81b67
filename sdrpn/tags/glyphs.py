"""Digits in several typefaces, drawn one by one so that the centre of each is known. Pillow only.

Two of the faces are bitmaps defined here; the others are DejaVu, which ships with matplotlib, and Pillow's default.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from sdrpn.errors import MissingDependency

__all__ = ["SEEN_FACES", "SHIFTED_FACES", "Face", "draw_digit", "require_fonts"]

Face = Literal["sans", "mono", "dots", "segments", "serif", "default"]

SEEN_FACES: tuple[Face, ...] = ("sans", "mono", "dots", "segments")
SHIFTED_FACES: tuple[Face, ...] = ("serif", "default")

Colour = tuple[int, int, int]

_FILES = {"sans": "DejaVuSans.ttf", "mono": "DejaVuSansMono.ttf", "serif": "DejaVuSerif.ttf"}
_SIZE_PER_CAP = {"sans": 1.372, "mono": 1.372, "serif": 1.372, "default": 1.40}  # font size / height of a digit

# Rows of five dots, top first; a set bit is ink.
_DOTS = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
}

# The lit segments a..g of each digit: top, top right, bottom right, bottom, bottom left, top left, middle.
_SEGMENTS = {
    "0": "abcdef",
    "1": "bc",
    "2": "abged",
    "3": "abgcd",
    "4": "fgbc",
    "5": "afgcd",
    "6": "afgedc",
    "7": "abc",
    "8": "abcdefg",
    "9": "abcdfg",
}


def draw_digit(
    draw: ImageDraw.ImageDraw, digit: str, face: Face, centre_xy: tuple[float, float], cap_px: float, colour: Colour
) -> None:
    """Draw one digit of height `cap_px` around its centre."""
    if face == "dots":
        _draw_dots(draw, digit, centre_xy, cap_px, colour)
    elif face == "segments":
        _draw_segments(draw, digit, centre_xy, cap_px, colour)
    else:
        font = _font(face, max(4, round(cap_px * _SIZE_PER_CAP[face])))
        x, y = centre_xy
        draw.text((x, y + cap_px / 2), digit, font=font, fill=colour, anchor="ms")


@functools.lru_cache(maxsize=512)
def _font(face: Face, size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    if face == "default":
        return ImageFont.load_default(size_px)
    return ImageFont.truetype(str(_font_folder() / _FILES[face]), size_px)


def require_fonts() -> None:
    """Raise MissingDependency where digits cannot be drawn, before any other work."""
    _font_folder()


@functools.cache
def _font_folder() -> Path:
    found = importlib.util.find_spec("matplotlib")  # found, not imported: only its font files are needed
    if found is None or found.origin is None:
        raise MissingDependency(
            "rendering tags needs the DejaVu fonts of matplotlib; install it: pip install matplotlib"
        )
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"


def _draw_dots(
    draw: ImageDraw.ImageDraw, digit: str, centre_xy: tuple[float, float], cap_px: float, colour: Colour
) -> None:
    dot = cap_px / 7
    left, top = centre_xy[0] - 2.5 * dot, centre_xy[1] - 3.5 * dot
    for row, bits in enumerate(_DOTS[digit]):
        for column in range(5):
            if bits >> (4 - column) & 1:
                x, y = left + column * dot, top + row * dot
                draw.rectangle((round(x), round(y), round(x + dot) - 1, round(y + dot) - 1), fill=colour)


def _draw_segments(
    draw: ImageDraw.ImageDraw, digit: str, centre_xy: tuple[float, float], cap_px: float, colour: Colour
) -> None:
    half_width, half_height, stroke = 0.26 * cap_px, 0.5 * cap_px, max(1, round(0.14 * cap_px))
    x, y = centre_xy
    left, right, top, bottom = (
        x - half_width,
        x + half_width,
        y - half_height + stroke / 2,
        y + half_height - stroke / 2,
    )
    lines = {
        "a": (left, top, right, top),
        "b": (right, top, right, y),
        "c": (right, y, right, bottom),
        "d": (left, bottom, right, bottom),
        "e": (left, y, left, bottom),
        "f": (left, top, left, y),
        "g": (left, y, right, y),
    }
    for segment in _SEGMENTS[digit]:
        draw.line(lines[segment], fill=colour, width=stroke)


def sample(face: Face, cap_px: int = 40) -> Image.Image:
    """All ten digits in a row, for inspection."""
    image = Image.new("RGB", (cap_px * 10, cap_px * 2), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for place, digit in enumerate("0123456789"):
        draw_digit(draw, digit, face, ((place + 0.5) * cap_px, cap_px), cap_px, (0, 0, 0))
    return image
