"""Draw what rounding each part of a model costs. Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from sdrpn.calibration.sensitivity import Cost

__all__ = ["draw_costs"]

CELL_W_PX, CELL_H_PX, LEFT_PX, TOP_PX, GAP_PX = 74, 22, 96, 64, 28
BACKGROUND, TEXT, DARK_TEXT = (24, 25, 28), (222, 224, 228), (20, 20, 20)
GOOD, BAD = (86, 180, 120), (222, 88, 70)

# Title, the figure, and where the colour has gone all the way from good to bad.
_PANELS: tuple[tuple[str, Callable[[Cost], float | None], float], ...] = (
    ("RoI map cosine", lambda cost: cost.roi_cosine, 0.99),
    ("box IoU", lambda cost: cost.box_iou, 0.9),
    ("same crop decision", lambda cost: cost.same_decision, 0.95),
    ("same answer", lambda cost: cost.same_answer, 0.8),
)


def draw_costs(costs: Sequence[Cost]) -> Image.Image:
    """Parts down, choices across, a panel a figure; green is as good as unrounded."""
    parts, choices = (list(dict.fromkeys(names)) for names in zip(*((c.part, c.choice) for c in costs), strict=True))
    by_place = {(cost.part, cost.choice): cost for cost in costs}
    panel_w = CELL_W_PX * len(choices) + GAP_PX
    size = LEFT_PX + panel_w * len(_PANELS), TOP_PX + CELL_H_PX * (len(parts) + 1)
    picture = Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for row, part in enumerate(parts):
        draw.text((LEFT_PX - 8, TOP_PX + CELL_H_PX * row + CELL_H_PX // 2), part, TEXT, font, anchor="rm")
    for number, (title, figure, worst) in enumerate(_PANELS):
        left = LEFT_PX + number * panel_w
        draw.text((left, 14), title, TEXT, font)
        for column, choice in enumerate(choices):
            x = left + column * CELL_W_PX
            draw.text((x + CELL_W_PX // 2, TOP_PX - 12), choice, TEXT, font, anchor="mm")
            for row, part in enumerate(parts):
                cost = by_place.get((part, choice))
                _draw_cell(draw, font, (x, TOP_PX + row * CELL_H_PX), None if cost is None else figure(cost), worst)
    return picture


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    at: tuple[int, int],
    value: float | None,
    worst: float,
) -> None:
    x, y = at
    share = 0.0 if value is None else min(1.0, max(0.0, (1 - value) / (1 - worst)))
    red, green, blue = (round(good + (bad - good) * share) for good, bad in zip(GOOD, BAD, strict=True))
    colour = (60, 62, 66) if value is None else (red, green, blue)
    draw.rectangle((x, y, x + CELL_W_PX - 2, y + CELL_H_PX - 2), colour)
    text = "" if value is None else f"{value:.5f}" if value > 0.99 and value < 1 else f"{value:.3f}"
    draw.text((x + CELL_W_PX // 2, y + CELL_H_PX // 2), text, DARK_TEXT, font, anchor="mm")
