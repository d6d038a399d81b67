"""Draw a picture beside its labels, and a sheet of such pairs. Pillow and NumPy only; knows no files.

Labels are drawn over the picture in grey, so that their colours are visible for any picture, and the foreground is
outlined in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sdrpn.images.picture_text import font, line_height, wrapped
from sdrpn.labels.denoise import BACKGROUND, FOREGROUND, IGNORED
from sdrpn.method.geometry import Seen

__all__ = ["LEGEND", "Colour", "LabelledPicture", "contact_sheet", "draw_labels", "draw_pair"]

Colour = tuple[int, int, int]
Line = tuple[int, int, int, int]

SIDE_PX, MARGIN_PX, COLUMNS = 448, 16, 2
FONT_PX = 20
PAGE: Colour = (24, 25, 28)
TEXT: Colour = (222, 224, 228)
PADDING: Colour = (60, 62, 68)  # around a picture that is not square
# Yellow and blue also differ in brightness, so that colour-blind readers can tell them apart.
TINTS: dict[int, Colour] = {FOREGROUND: (255, 214, 10), BACKGROUND: (0, 30, 190)}
OPACITY = 0.55
LINE_PX = 3
LEGEND: dict[int, tuple[Colour, str]] = {
    FOREGROUND: (TINTS[FOREGROUND], "foreground: to be cropped"),
    BACKGROUND: (TINTS[BACKGROUND], "background: not to be cropped"),
    IGNORED: ((140, 140, 140), "ignored: uncertain, not used in training"),
}


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """A picture (upright RGB), its labels (h,w) and the question that they are about."""

    picture: Image.Image
    cells: NDArray[np.int8]
    question: str


def draw_pair(labelled: LabelledPicture, fit: Seen = "pad", side_px: int = SIDE_PX) -> Image.Image:
    """The picture as the model sees it, and beside it the same picture with its labels."""
    pair = Image.new("RGB", (2 * side_px + MARGIN_PX // 2, side_px), PAGE)
    seen = _seen_part(labelled.picture, side_px, fit)
    _outline(seen, labelled.cells)
    pair.paste(seen, (0, 0))
    pair.paste(draw_labels(labelled.picture, labelled.cells, side_px, fit), (side_px + MARGIN_PX // 2, 0))
    return pair


def draw_labels(picture: Image.Image, cells: NDArray[np.int8], side_px: int, fit: Seen = "pad") -> Image.Image:
    """What the grid covers of the picture, in grey, with its labels (h,w): foreground yellow and outlined, background
    blue."""
    grey = np.asarray(_seen_part(picture, side_px, fit).convert("L"), np.float32)
    pixels = np.repeat((90 + 0.5 * grey)[..., None], 3, axis=2)  # not black or white: both colours are visible
    rows, columns = (np.arange(side) * count // side for side, count in zip(grey.shape, cells.shape, strict=True))
    label = cells[np.ix_(rows, columns)]
    for value, colour in TINTS.items():
        pixels[label == value] *= 1 - OPACITY
        pixels[label == value] += OPACITY * np.array(colour, np.float32)
    shown = Image.fromarray(pixels.astype(np.uint8))
    _outline(shown, cells)
    return shown


def contact_sheet(samples: Sequence[LabelledPicture], fit: Seen = "pad") -> Image.Image:
    """Pairs in rows, each above its full question, with a legend of the colours at the top."""
    pair_px, text_font = 2 * SIDE_PX + MARGIN_PX // 2, font(FONT_PX)
    captions = [wrapped(sample.question, text_font, pair_px) for sample in samples]
    rows = [range(first, min(first + COLUMNS, len(samples))) for first in range(0, len(samples), COLUMNS)]
    text_px = [max(len(captions[number]) for number in row) * line_height(text_font) for row in rows]
    legend_px = 2 * MARGIN_PX + FONT_PX
    height = legend_px + sum(SIDE_PX + lines + 2 * MARGIN_PX for lines in text_px)
    sheet = Image.new("RGB", (COLUMNS * (pair_px + MARGIN_PX) + MARGIN_PX, height), PAGE)
    draw = ImageDraw.Draw(sheet)
    _draw_legend(draw, MARGIN_PX)
    y = legend_px
    for row, lines_px in zip(rows, text_px, strict=True):
        for column, number in enumerate(row):
            x = MARGIN_PX + column * (pair_px + MARGIN_PX)
            sheet.paste(draw_pair(samples[number], fit), (x, y))
            for line, text in enumerate(captions[number]):
                draw.text((x, y + SIDE_PX + 6 + line * line_height(text_font)), text, TEXT, text_font)
        y += SIDE_PX + lines_px + 2 * MARGIN_PX
    return sheet


def _draw_legend(draw: ImageDraw.ImageDraw, y: int) -> None:
    x, text_font = MARGIN_PX, font(FONT_PX)
    for colour, about in LEGEND.values():
        draw.rectangle((x, y, x + FONT_PX, y + FONT_PX), colour)
        draw.text((x + FONT_PX + 8, y + FONT_PX // 2), about, TEXT, text_font, anchor="lm")
        x += FONT_PX + 8 + round(text_font.getlength(about)) + 2 * MARGIN_PX


def _seen_part(picture: Image.Image, side_px: int, fit: Seen) -> Image.Image:
    """What the grid covers: the padded square or the picture's middle, of this side; or the picture, within it."""
    scale = side_px / (min if fit == "crop" else max)(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    shown = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    if fit == "whole":
        return shown
    square = Image.new("RGB", (side_px, side_px), PADDING)
    square.paste(shown, ((side_px - shown.width) // 2, (side_px - shown.height) // 2))
    return square


def _outline(square: Image.Image, cells: NDArray[np.int8]) -> None:
    """Draw a light line on a dark one around the foreground, visible on any colour."""
    draw = ImageDraw.Draw(square)
    lines = list(_borders(cells == FOREGROUND, square.size))
    for colour, width in ((PAGE, LINE_PX + 4), (TINTS[FOREGROUND], LINE_PX)):
        for line in lines:
            draw.line(line, colour, width)


def _borders(fired: NDArray[np.bool_], size_wh: tuple[int, int]) -> Iterator[Line]:
    """The cell edges, in pixels, between foreground cells and others or the border."""
    around = np.pad(fired, 1)
    across, down = around[1:-1, 1:] != around[1:-1, :-1], around[1:, 1:-1] != around[:-1, 1:-1]
    y, x = (
        np.minimum(np.arange(count + 1) * side // count, side - 1).tolist()
        for side, count in zip(reversed(size_wh), fired.shape, strict=True)
    )  # where rows and columns begin
    for row, column in np.argwhere(across).tolist():
        yield x[column], y[row], x[column], y[row + 1]
    for row, column in np.argwhere(down).tolist():
        yield x[column], y[row], x[column + 1], y[row]
