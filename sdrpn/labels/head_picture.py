"""Draw which heads of a model point at the region that a question is about. Pillow and NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sdrpn.images.picture_text import font, line_height, wrapped
from sdrpn.labels.head_choice import Head
from sdrpn.labels.head_scores import TOP_PLACES, HeadScores
from sdrpn.method.overlay import BACKGROUND, CROP_COLOUR, TEXT_COLOUR, Colour, heat_colours

__all__ = ["draw_heads"]

GRID_PX = 960  # the size of the grid for a large model
CELL_PX = 28, 64  # the smallest and the largest cell
AXIS_PX, MARGIN_PX, LIST_PX, LEGEND_WH_PX = 110, 28, 400, (240, 16)
FONT_PX, TITLE_PX = 18, 26
NEVER: Colour = (44, 46, 52)  # for a head that is never in the top ten
TITLE = "Which attention heads point at what a question is about"
ABOUT = (
    "A cell is a head: layers from top to bottom, heads of a layer from left to right, both counted from 0. Colour and "
    f"figure give the share of questions (per cent) in which it is among the {TOP_PLACES} best: compact, and depending "
    "on the question. Grey: in none. The framed heads are chosen."
)


def draw_heads(scores: HeadScores, chosen: Sequence[Head]) -> Image.Image:
    """Draw layers down, heads across, each with its share of questions; beside them the chosen heads, best first."""
    layers, heads = scores.frequency.shape
    cell_px = min(max(GRID_PX // max(layers, heads), CELL_PX[0]), CELL_PX[1])
    title_px = math.ceil(font(TITLE_PX).getlength(TITLE)) + 2 * MARGIN_PX
    width = max(title_px, AXIS_PX + heads * cell_px + LIST_PX + 3 * MARGIN_PX)
    about = wrapped(ABOUT, font(FONT_PX), width - 2 * MARGIN_PX)
    listed = _listed(scores, chosen)
    top = 2 * MARGIN_PX + line_height(font(TITLE_PX)) + len(about) * line_height(font(FONT_PX)) + FONT_PX
    body_px = max(layers * cell_px, len(listed) * line_height(font(FONT_PX)))
    picture = Image.new("RGB", (width, top + body_px + 3 * MARGIN_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN_PX, MARGIN_PX), TITLE, TEXT_COLOUR, font(TITLE_PX))
    _draw_lines(draw, (MARGIN_PX, MARGIN_PX + line_height(font(TITLE_PX)) + 6), about)
    _draw_grid(draw, scores, chosen, (AXIS_PX + MARGIN_PX, top), cell_px)
    _draw_lines(draw, (AXIS_PX + heads * cell_px + 2 * MARGIN_PX, top), listed)
    _draw_legend(picture, (AXIS_PX + MARGIN_PX, top + body_px + MARGIN_PX))
    return picture


def _listed(scores: HeadScores, chosen: Sequence[Head]) -> list[str]:
    """The chosen heads as text."""
    lines = [f"{len(chosen)} chosen, best first:" if chosen else "No head is chosen."]
    for layer, head in chosen:
        found = f"in {100 * scores.frequency[layer, head]:.0f} % of questions"
        lines += wrapped(f"layer {layer}, head {head}: {found}", font(FONT_PX), LIST_PX)
    return lines


def _draw_grid(
    draw: ImageDraw.ImageDraw, scores: HeadScores, chosen: Sequence[Head], origin_xy: tuple[int, int], cell_px: int
) -> None:
    """Draw the cells, with the indices of layers and heads beside them."""
    (left, top), (layers, heads), small = origin_xy, scores.frequency.shape, font(min(FONT_PX, cell_px // 2))
    for head in range(heads):
        draw.text((left + (head + 0.5) * cell_px, top - 6), str(head), TEXT_COLOUR, small, anchor="mb")
    for layer in range(layers):
        middle_y = top + (layer + 0.5) * cell_px
        draw.text((left - 10, middle_y), f"layer {layer}", TEXT_COLOUR, font(FONT_PX), anchor="rm")
        for head in range(heads):
            _draw_cell(
                draw, float(scores.frequency[layer, head]), (left + head * cell_px, top + layer * cell_px), cell_px
            )
    for layer, head in chosen:
        x, y = left + head * cell_px, top + layer * cell_px
        draw.rectangle((x - 2, y - 2, x + cell_px, y + cell_px), outline=BACKGROUND, width=6)
        draw.rectangle((x - 1, y - 1, x + cell_px - 1, y + cell_px - 1), outline=CROP_COLOUR, width=3)


def _draw_cell(draw: ImageDraw.ImageDraw, share: float, xy: tuple[int, int], cell_px: int) -> None:
    colour = _colour(share)
    x, y = xy
    draw.rectangle((x, y, x + cell_px - 2, y + cell_px - 2), colour)
    if share > 0:
        dark = sum(colour) > 3 * 128
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        middle = x + (cell_px - 2) / 2, y + (cell_px - 2) / 2
        draw.text(middle, text, BACKGROUND if dark else TEXT_COLOUR, font(round(0.42 * cell_px)), anchor="mm")


def _colour(share: float) -> Colour:
    """The colour of a share, on the same scale for all models, so that pictures can be compared."""
    if share <= 0:
        return NEVER
    red, green, blue = (int(value) for value in heat_colours(np.array(share, np.float32)))
    return red, green, blue


def _draw_legend(picture: Image.Image, xy: tuple[int, int]) -> None:
    draw, (width, height), (x, y) = ImageDraw.Draw(picture), LEGEND_WH_PX, xy
    row = np.round(heat_colours(np.linspace(0, 1, width, dtype=np.float32))).astype(np.uint8)
    picture.paste(Image.fromarray(np.repeat(row[None], height, axis=0)), (x, y))
    draw.text((x - 8, y + height // 2), "0 %", TEXT_COLOUR, font(FONT_PX), anchor="rm")
    draw.text((x + width + 8, y + height // 2), "100 % of questions", TEXT_COLOUR, font(FONT_PX), anchor="lm")


def _draw_lines(draw: ImageDraw.ImageDraw, xy: tuple[int, int], lines: Sequence[str]) -> None:
    for number, line in enumerate(lines):
        draw.text((xy[0], xy[1] + number * line_height(font(FONT_PX))), line, TEXT_COLOUR, font(FONT_PX))
