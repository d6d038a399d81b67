"""Draw what the crop's content is worth, and accuracy over time and tokens. Pillow only; computes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

from sdrpn.evaluation.causal import CausalResult
from sdrpn.evaluation.gate_curve import CurvePoint, GateCurve
from sdrpn.evaluation.plot import FONT_PX, Axis, Plot
from sdrpn.images.picture_text import font, line_height, wrapped
from sdrpn.method.overlay import BACKGROUND, TEXT_COLOUR, Colour

__all__ = ["draw_causal", "draw_curve"]

WIDTH_PX, PANEL_WH_PX, MARGIN_PX, LEFT_PX = 1500, (600, 460), 32, 90
TITLE_PX = 26
GATE, CONFIDENCE, RANDOM = (80, 220, 255), (240, 176, 64), (150, 152, 160)
TRUE, CONTROL = (120, 214, 150), (222, 110, 90)
CURVES: dict[str, Colour] = {"gate": GATE, "probe": (255, 140, 190), "confidence": CONFIDENCE}
POINTS: dict[str, Colour] = {"plain": (222, 224, 228), "always": TRUE, "sdrpn": TRUE, "oracle-gate": (200, 140, 240)}
POINTS["oracle-crop"] = (255, 255, 120)
RULES = {
    "plain": "plain: one look",
    "always": "two looks at every question",
    "sdrpn": "two looks at every question",
    "oracle-gate": "oracle gate: two looks only where they score higher",
    "oracle-crop": "oracle crop: two looks, at the true boxes",
    "gate": "gate: every threshold of its score",
    "probe": "probe: every threshold of its score",
    "confidence": "confidence: every threshold of the map's strongest cell",
}
CONTENTS = {
    "plain": "no crop",
    "sdrpn": "true crop",
    "always": "true crop",
    "crop-lowres": "base view's\npixels",
    "crop-swapped": "another\npicture's crop",
    "crop-blank": "blank crop",
}


def draw_curve(task: str, curve: GateCurve) -> Image.Image:
    """Accuracy over mean milliseconds, and over image tokens: a line for every score, dots for fixed rules."""
    title = f"{task}: accuracy of {curve.questions:,} questions, looked at once or twice"
    picture, draw, top = _canvas(title, PANEL_WH_PX[1] + 220)
    points = [*curve.fixed, *(point for judged in curve.curves for point in judged.points)]
    up = Axis("accuracy, %", *_range([100 * end for point in points for end in point.interval]))
    panels: list[tuple[str, Callable[[CurvePoint], float]]] = [
        ("mean milliseconds per question", lambda point: 1000 * point.seconds),
        ("mean image tokens per question, crops included", lambda point: point.tokens),
    ]
    for number, (label, figure) in enumerate(panels):
        left = LEFT_PX + number * (PANEL_WH_PX[0] + LEFT_PX)
        frame = left, top, left + PANEL_WH_PX[0], top + PANEL_WH_PX[1]
        plot = Plot(draw, frame, Axis(label, *_range([figure(point) for point in points])), up)
        plot.draw_axes()
        _draw_rules(plot, curve, figure)
    names = [judged.judge for judged in curve.curves] + [point.name for point in curve.fixed]
    entries = [(RULES[name], CURVES.get(name) or POINTS[name]) for name in names]
    entries.append(("a random gate", RANDOM))
    if curve.own is not None:
        own = curve.own.point
        entries.append((f"ring: the model's own threshold, {own.threshold:.3g}", CURVES[own.name]))
    _draw_legend(draw, entries, top + PANEL_WH_PX[1] + 80)
    return picture


def draw_causal(task: str, causal: CausalResult) -> Image.Image:
    """A bar for every content of the crop, with intervals; under them the 2 x 2 tables."""
    title = f"{task}: the same crop with other content, {causal.questions:,} questions"
    picture, draw, top = _canvas(title, PANEL_WH_PX[1] + 330)
    right = LEFT_PX + 220 * len(causal.arms)
    plot = Plot(
        draw,
        (LEFT_PX, top, right, top + PANEL_WH_PX[1]),
        Axis("", 0, len(causal.arms)),
        Axis("accuracy, %", 0, 100),
    )
    plot.draw_axes(ticks_across=False)
    for place, arm in enumerate(causal.arms):
        colour = TRUE if arm.method == causal.crop else RANDOM if arm.method == "plain" else CONTROL
        (x1, y1), (x2, y2) = plot.at(place + 0.25, 100 * arm.accuracy), plot.at(place + 0.75, 0)
        draw.rectangle((x1, min(y1, y2 - 1), x2, y2), colour)
        low, high = arm.interval
        plot.draw_whisker(place + 0.5, (100 * low, 100 * high), TEXT_COLOUR)
        x, y = plot.at(place + 0.5, 0)
        closed = "" if arm.gap_closed is None else f"\n{100 * arm.gap_closed:.0f} % of the gap"
        text = f"{CONTENTS[arm.method]}\n{100 * arm.accuracy:.1f} %{closed}"
        draw.multiline_text((x, y + 12), text, TEXT_COLOUR, font(FONT_PX), anchor="ma", align="center")
    _draw_tables(draw, causal, (LEFT_PX, top + PANEL_WH_PX[1] + 140))
    return picture


def _draw_rules(plot: Plot, curve: GateCurve, figure: Callable[[CurvePoint], float]) -> None:
    ends = [point for point in curve.fixed if point.name in ("plain", "always", "sdrpn")]
    plot.draw_line([(figure(point), 100 * point.accuracy) for point in ends], RANDOM, 2)
    for judged in curve.curves:
        pairs = [(figure(point), 100 * point.accuracy) for point in judged.points]
        plot.draw_line(pairs, CURVES[judged.judge])
    for point in curve.fixed:
        low, high = point.interval
        plot.draw_whisker(figure(point), (100 * low, 100 * high), POINTS[point.name])
        plot.draw_dot(figure(point), 100 * point.accuracy, POINTS[point.name])
    if curve.own is not None:
        middle = plot.at(figure(curve.own.point), 100 * curve.own.point.accuracy)
        plot.draw.circle(middle, 12, outline=CURVES[curve.own.point.name], width=3)


def _draw_tables(draw: ImageDraw.ImageDraw, causal: CausalResult, xy: tuple[int, int]) -> None:
    """Columns of numbers: right or wrong with the true crop, and with another content."""
    x, y = xy
    heads = ("true crop against", "both right", "only true", "only other", "neither", "points", "95 %", "McNemar p")
    edges = (0, 260, 400, 530, 660, 780, 900, 1080)
    for head, edge in zip(heads, edges, strict=True):
        draw.text((x + edge, y), head, RANDOM, font(FONT_PX))
    for number, table in enumerate(causal.tables, start=1):
        low, high = table.interval
        cells = (
            CONTENTS[table.control].replace("\n", " "),
            *map(str, (table.both, table.only_true, table.only_control, table.neither)),
            f"{100 * table.difference:+.1f}",
            f"{100 * low:+.1f} to {100 * high:+.1f}",
            f"{table.p_value:.2g}",
        )
        for cell, edge in zip(cells, edges, strict=True):
            draw.text((x + edge, y + number * line_height(font(FONT_PX))), cell, TEXT_COLOUR, font(FONT_PX))


def _canvas(title: str, body_px: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A picture with its title, and where the body begins."""
    lines = wrapped(title, font(TITLE_PX), WIDTH_PX - 2 * MARGIN_PX)
    top = 2 * MARGIN_PX + len(lines) * line_height(font(TITLE_PX)) + FONT_PX
    picture = Image.new("RGB", (WIDTH_PX, top + body_px), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((MARGIN_PX, MARGIN_PX + number * line_height(font(TITLE_PX))), line, TEXT_COLOUR, font(TITLE_PX))
    return picture, draw, top


def _draw_legend(draw: ImageDraw.ImageDraw, entries: Sequence[tuple[str, Colour]], y: int) -> None:
    for number, (text, colour) in enumerate(entries):
        row, column = divmod(number, 2)
        left, middle = LEFT_PX + column * (PANEL_WH_PX[0] + LEFT_PX), y + row * line_height(font(FONT_PX))
        draw.rectangle((left, middle - 4, left + 24, middle + 4), colour)
        draw.text((left + 34, middle), text, TEXT_COLOUR, font(FONT_PX), anchor="lm")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The values with a little room on both sides; never empty."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(1.0, abs(low)) * 0.06
    return (max(0.0, low - room) if math.isfinite(low) else 0.0), high + room
