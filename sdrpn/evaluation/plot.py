"""Axes with ticks to draw figures on: values to pixels. Pillow only; knows nothing about the figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ImageDraw

from sdrpn.images.picture_text import font
from sdrpn.method.overlay import TEXT_COLOUR, Colour

__all__ = ["FONT_PX", "FRAME_COLOUR", "Axis", "Plot", "round_steps"]

FONT_PX = 18
FRAME_COLOUR: Colour = (70, 72, 78)
MOST_STEPS = 6


@dataclass(frozen=True)
class Axis:
    """A range of values and what they are."""

    label: str
    low: float
    high: float


@dataclass(frozen=True)
class Plot:
    """A frame (x1, y1, x2, y2) in pixels with two axes."""

    draw: ImageDraw.ImageDraw
    frame: tuple[int, int, int, int]
    across: Axis
    up: Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a pair of values."""
        x1, y1, x2, y2 = self.frame
        share_x = (x - self.across.low) / (self.across.high - self.across.low)
        share_y = (y - self.up.low) / (self.up.high - self.up.low)
        return x1 + share_x * (x2 - x1), y2 - share_y * (y2 - y1)

    def draw_axes(self, *, ticks_across: bool = True) -> None:
        """The frame, lines at round values of `up`, and the labels."""
        x1, y1, x2, y2 = self.frame
        for value in round_steps(self.up.low, self.up.high):
            _, y = self.at(self.across.low, value)
            self.draw.line((x1, y, x2, y), FRAME_COLOUR)
            self.draw.text((x1 - 8, y), f"{value:g}", TEXT_COLOUR, font(FONT_PX), anchor="rm")
        for value in round_steps(self.across.low, self.across.high) if ticks_across else ():
            x, _ = self.at(value, self.up.low)
            self.draw.line((x, y2, x, y2 + 6), TEXT_COLOUR)
            self.draw.text((x, y2 + 10), f"{value:g}", TEXT_COLOUR, font(FONT_PX), anchor="mt")
        self.draw.line((x1, y1, x1, y2, x2, y2), TEXT_COLOUR)
        self.draw.text((x1, y1 - 12), self.up.label, TEXT_COLOUR, font(FONT_PX), anchor="ls")
        self.draw.text(((x1 + x2) / 2, y2 + 36), self.across.label, TEXT_COLOUR, font(FONT_PX), anchor="mt")

    def draw_line(self, pairs: Sequence[tuple[float, float]], colour: Colour, width_px: int = 3) -> None:
        """A line through pairs of values."""
        self.draw.line([self.at(*pair) for pair in pairs], colour, width_px)

    def draw_dot(self, x: float, y: float, colour: Colour, radius_px: int = 7) -> None:
        """A dot at a pair of values."""
        self.draw.circle(self.at(x, y), radius_px, colour)

    def draw_whisker(self, x: float, ends: tuple[float, float], colour: Colour) -> None:
        """An interval of values of `up`."""
        (left, low), (_, high) = self.at(x, ends[0]), self.at(x, ends[1])
        self.draw.line((left, low, left, high), colour, 2)
        for y in (low, high):
            self.draw.line((left - 6, y, left + 6, y), colour, 2)


def round_steps(low: float, high: float) -> list[float]:
    """A few round values in a range."""
    if not high > low:
        return [low]
    rough = (high - low) / MOST_STEPS
    unit = 10 ** math.floor(math.log10(rough))
    step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]
