"""Draw the error caused by rounding each part of a model. Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from sdrpn.calibration.sensitivity import ALL, Cost

__all__ = ["draw_costs"]

CELL_W_PX, CELL_H_PX, LEFT_PX, TOP_PX, GAP_PX, BOTTOM_PX = 86, 22, 96, 64, 28, 34
BACKGROUND, TEXT, DARK_TEXT = (24, 25, 28), (222, 224, 228), (20, 20, 20)
GOOD, BAD, NONE = (86, 180, 120), (222, 88, 70), (60, 62, 66)
_PADDING_PX = 8


class _Panel(NamedTuple):
    title: str
    figure: Callable[[Cost], float | None]
    worst: float  # the value at which the colour is fully red
    style: str


_PANELS = (
    _Panel("RoI map cosine", lambda cost: cost.roi_cosine, 0.99, ".5f"),
    _Panel("box IoU", lambda cost: cost.box_iou, 0.9, ".3f"),
    _Panel("same crop decision", lambda cost: cost.same_decision, 0.95, ".1%"),
    _Panel("same answer", lambda cost: cost.same_answer, 0.8, ".1%"),
)

Font: TypeAlias = ImageFont.ImageFont | ImageFont.FreeTypeFont


def draw_costs(costs: Sequence[Cost]) -> Image.Image:
    """Parts down, choices across, one panel per figure; green is as good as unrounded."""
    parts, choices = (list(dict.fromkeys(names)) for names in zip(*((c.part, c.choice) for c in costs), strict=True))
    by_place = {(cost.part, cost.choice): cost for cost in costs}
    panel_w = CELL_W_PX * len(choices) + GAP_PX
    bottom = TOP_PX + CELL_H_PX * len(parts)
    picture = Image.new("RGB", (LEFT_PX + panel_w * len(_PANELS), bottom + BOTTOM_PX), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for row, part in enumerate(parts):
        at = LEFT_PX - _PADDING_PX, TOP_PX + CELL_H_PX * row + CELL_H_PX // 2
        draw.text(at, part, TEXT, font, anchor="rm")
    for number, panel in enumerate(_PANELS):
        left = LEFT_PX + number * panel_w
        draw.text((left, 14), f"{panel.title}, red at {panel.worst:g}", TEXT, font)
        for column, choice in enumerate(choices):
            x = left + column * CELL_W_PX
            draw.text((x + CELL_W_PX // 2, TOP_PX - 12), choice, TEXT, font, anchor="mm")
            for row, part in enumerate(parts):
                cost = by_place.get((part, choice))
                value = None if cost is None else panel.figure(cost)
                _draw_cell(draw, font, (x, TOP_PX + row * CELL_H_PX), value, panel)
    together = f", {ALL} those of the LLM at once" if ALL in parts else ""
    note = f"Each row rounds that part alone{together}. Green: equal to the checkpoint itself."
    draw.text((LEFT_PX, bottom + BOTTOM_PX // 2), note, TEXT, font, anchor="lm")
    return picture


def _draw_cell(draw: ImageDraw.ImageDraw, font: Font, at: tuple[int, int], value: float | None, panel: _Panel) -> None:
    x, y = at
    colour, text = NONE, ""
    if value is not None:
        share = min(1.0, max(0.0, (1 - value) / (1 - panel.worst)))
        red, green, blue = (round(good + (bad - good) * share) for good, bad in zip(GOOD, BAD, strict=True))
        colour, text = (red, green, blue), f"{value:{panel.style}}"
    draw.rectangle((x, y, x + CELL_W_PX - 2, y + CELL_H_PX - 2), colour)
    draw.text((x + CELL_W_PX // 2, y + CELL_H_PX // 2), text, DARK_TEXT, font, anchor="mm")
