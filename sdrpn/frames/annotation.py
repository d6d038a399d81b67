"""Draw on a frame what was found: boxes with scores in the colour of their question. Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sdrpn.frames.frame import Frame
from sdrpn.images.picture_text import fitted_line, font
from sdrpn.method.geometry import Fit
from sdrpn.method.grids import Box
from sdrpn.method.overlay import BACKGROUND, CROP_COLOUR, TEXT_COLOUR, Colour, fitted_part, heated, outline_box

__all__ = ["LONGEST_SIDE_PX", "Marks", "annotated", "colour_of"]

LONGEST_SIDE_PX = 1280  # of what is drawn; a smaller frame keeps its size
SHORTEST_SIDE_PX = 320  # a smaller frame is enlarged, or its text could not be read
FONT_PX, LINE_PX, MARGIN_PX = 15, 24, 8

# Distinct in brightness too. The first is that of a crop in other overlays.
_COLOURS: tuple[Colour, ...] = (
    CROP_COLOUR,
    (255, 200, 60),
    (255, 120, 190),
    (150, 240, 110),
    (255, 140, 80),
    (170, 150, 255),
)


@dataclass(frozen=True)
class Marks:
    """What one question found. `boxes`: x1, y1, x2, y2 in pixels of the frame, each with its score.

    left_out: why regions that fired are no boxes, so that a bright map without a box explains itself.
    """

    question: str
    boxes: Sequence[tuple[Box, float]]
    roi_map: npt.NDArray[np.float32] | None = None  # (h, w) in 0..1
    left_out: Sequence[str] = ()


def colour_of(number: int) -> Colour:
    """The colour of the question with this number, from 0."""
    return _COLOURS[number % len(_COLOURS)]


def annotated(frame: Frame, marks: Sequence[Marks], *, fit: Fit = "pad") -> Image.Image:
    """The frame with the boxes of every question, and a line for each question below it.

    The map is drawn where there is one question: several would cover each other, and the first line says so. Sides are
    even, as video encoders need them.
    Args: fit: how the map lies over the frame, see `VisionSpec`
    """
    image = Image.fromarray(frame.pixels)
    shown = fitted_part(image, (0, 0, *image.size), _room(image.size))
    if len(marks) == 1 and marks[0].roi_map is not None:
        shown = heated(shown, marks[0].roi_map, fit)
    scale_xy = shown.width / image.width, shown.height / image.height
    for number, mark in enumerate(marks):
        for box, score in mark.boxes:
            outline_box(shown, box, scale_xy, colour_of(number), f"{score:.2f}")
    return _with_legend(shown, frame, marks)


def _room(size_wh: tuple[int, int]) -> tuple[int, int]:
    longer = max(size_wh)
    scale = min(LONGEST_SIDE_PX, max(longer, SHORTEST_SIDE_PX)) / longer
    return max(1, round(size_wh[0] * scale)), max(1, round(size_wh[1] * scale))


def _with_legend(shown: Image.Image, frame: Frame, marks: Sequence[Marks]) -> Image.Image:
    height = shown.height + LINE_PX * (len(marks) + 1) + MARGIN_PX
    canvas = Image.new("RGB", (_even(shown.width), _even(height)), BACKGROUND)
    canvas.paste(shown, (0, 0))
    draw, y = ImageDraw.Draw(canvas), shown.height + MARGIN_PX // 2
    when = "" if frame.time_s is None else f"  {frame.time_s:.2f} s"
    maps = len(marks) > 1 and any(mark.roi_map is not None for mark in marks)
    why = "  no map: several questions" if maps else ""
    _line(draw, y, f"frame {frame.index}{when}", why, TEXT_COLOUR, canvas.width)
    for number, mark in enumerate(marks):
        y += LINE_PX
        _line(draw, y, mark.question, f"  {_count(mark)}", colour_of(number), canvas.width)
    return canvas


def _count(mark: Marks) -> str:
    left_out = f"; left out: {', '.join(mark.left_out)}" if mark.left_out else ""
    return f"[{len(mark.boxes)} {'region' if len(mark.boxes) == 1 else 'regions'}{left_out}]"


def _line(draw: ImageDraw.ImageDraw, y: int, text: str, ending: str, colour: Colour, width: int) -> None:
    def fits(line: str) -> bool:
        return bool(draw.textlength(line, font=font(FONT_PX)) <= width - 2 * MARGIN_PX)

    line = fitted_line(" ".join(text.split()), ending, fits)
    draw.text((MARGIN_PX, y + LINE_PX // 2), line, fill=colour, font=font(FONT_PX), anchor="lm")


def _even(size: int) -> int:
    return size + size % 2
