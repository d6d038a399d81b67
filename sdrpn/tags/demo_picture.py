"""One picture that explains the method: what the first pass saw, where it pointed, and what the crop showed.

question
1 first look        2 where it points      3 the crop, enlarged
answer from 1       true answer            answer with 3 added
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sdrpn.method.geometry import Seen
from sdrpn.method.grids import Box
from sdrpn.method.overlay import BACKGROUND, CROP_COLOUR, TEXT_COLOUR, fitted_part, heated, outline_box

__all__ = ["Told", "draw_demo"]

Font: TypeAlias = Any  # Pillow's fonts share no base class
Colour: TypeAlias = tuple[int, int, int]

PANEL_PX = 472
MARGIN_PX = 28
HEADER_PX = 104
TITLE_PX = 40  # height of the title above a panel
FOOTER_PX = 128
FAINT: Colour = (150, 154, 162)
FRAME: Colour = (60, 62, 68)
RIGHT: Colour = (95, 210, 130)
WRONG: Colour = (245, 105, 95)
ANSWER_PX = 44
VERDICT_PX = 90  # the mark beside an answer


@dataclass(frozen=True)
class Told:
    """A model's answer, and whether it is correct."""

    text: str
    right: bool


def draw_demo(
    image: Image.Image,
    question: str,
    expected: str,
    plain: Told,
    again: Told,
    *,
    roi_map: npt.NDArray[np.float32] | None,
    boxes_xyxy_px: tuple[Box, ...],
    first_look_wh: tuple[int, int],
    seen: Seen = "pad",
) -> Image.Image:
    """Draw the picture.

    Args:
        image: upright RGB
        plain, again: the answers with one pass and with two
        roi_map: (h, w) in 0..1 over what the grid covers
        boxes_xyxy_px: the crops of the second pass; the first is shown
        first_look_wh: the size of what the model reads
        seen: what the grid covers of the image
    """
    canvas = Image.new("RGB", (3 * PANEL_PX + 4 * MARGIN_PX, _panel_top() + PANEL_PX + FOOTER_PX), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    width, height = image.size
    _text(draw, (MARGIN_PX, 24), question, 34)
    read = f"{first_look_wh[0]} x {first_look_wh[1]}"
    shrunk = f"The picture has {width} x {height} pixels; the model reads {read} at a time."
    _text(draw, (MARGIN_PX, 70), shrunk, 18, FAINT)
    _panel(canvas, 0, _first_look(image, first_look_wh), "1", f"First look: everything in {read} pixels")
    pointed = _pointed(image, roi_map, boxes_xyxy_px, seen)
    _panel(canvas, 1, pointed, "2", "Where the question points")
    if boxes_xyxy_px:
        box = boxes_xyxy_px[0]
        crop = fitted_part(image, box, (PANEL_PX, PANEL_PX))
        _panel(canvas, 2, crop, "3", f"Second look: {box[2] - box[0]} x {box[3] - box[1]} pixels, enlarged")
        _zoom_lines(canvas, image.size, box, pointed.size, crop.size)
    else:
        _panel(canvas, 2, Image.new("RGB", (PANEL_PX, PANEL_PX), BACKGROUND), "3", "No second look")
    _answer(draw, 0, "One look answers", plain.text, plain.right)
    _answer(draw, 1, "The true answer", expected, None)
    _answer(draw, 2, "Two looks answer", again.text, again.right)
    return canvas


def _panel_top() -> int:
    return HEADER_PX + TITLE_PX


def _panel_left(column: int) -> int:
    return MARGIN_PX + column * (PANEL_PX + MARGIN_PX)


def _first_look(image: Image.Image, read_wh: tuple[int, int]) -> Image.Image:
    """The picture at the model's resolution, enlarged so that each pixel is visible."""
    scale = min(read_wh[0] / image.width, read_wh[1] / image.height)
    small = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    enlarged = PANEL_PX / max(small.size)
    return small.resize((round(small.width * enlarged), round(small.height * enlarged)), Image.Resampling.NEAREST)


def _pointed(
    image: Image.Image, roi_map: npt.NDArray[np.float32] | None, boxes_xyxy_px: tuple[Box, ...], seen: Seen
) -> Image.Image:
    shown = fitted_part(image, (0, 0, *image.size), (PANEL_PX, PANEL_PX))
    if roi_map is not None:
        shown = heated(shown, roi_map, seen)
    for box in boxes_xyxy_px:
        outline_box(shown, box, (shown.width / image.width, shown.height / image.height), CROP_COLOUR, "")
    return shown


def _panel(canvas: Image.Image, column: int, picture: Image.Image, number: str, title: str) -> None:
    """Draw a picture centred in its column under a numbered title."""
    draw, left, top = ImageDraw.Draw(canvas), _panel_left(column), _panel_top()
    middle_y = HEADER_PX + TITLE_PX // 2 - 4
    draw.ellipse((left, middle_y - 13, left + 26, middle_y + 13), fill=CROP_COLOUR)
    draw.text((left + 13, middle_y), number, fill=BACKGROUND, font=_font(17), anchor="mm")
    draw.text((left + 38, middle_y), title, fill=TEXT_COLOUR, font=_font(19), anchor="lm")
    draw.rectangle((left - 1, top - 1, left + PANEL_PX, top + PANEL_PX), outline=FRAME)
    canvas.paste(picture, _placed(column, picture.size))


def _placed(column: int, size: tuple[int, int]) -> tuple[int, int]:
    """The upper left corner of a picture in its column."""
    return _panel_left(column) + (PANEL_PX - size[0]) // 2, _panel_top() + (PANEL_PX - size[1]) // 2


def _zoom_lines(
    canvas: Image.Image, image_wh: tuple[int, int], box: Box, pointed_wh: tuple[int, int], crop_wh: tuple[int, int]
) -> None:
    """Draw lines from the box to the crop and a frame around the crop."""
    draw, scale = ImageDraw.Draw(canvas), pointed_wh[0] / image_wh[0]
    (x, y), (crop_x, crop_y) = _placed(1, pointed_wh), _placed(2, crop_wh)
    right, top, bottom = (round(place) for place in (x + box[2] * scale, y + box[1] * scale, y + box[3] * scale))
    draw.line((right, top, crop_x - 2, crop_y - 2), fill=CROP_COLOUR, width=2)
    draw.line((right, bottom, crop_x - 2, crop_y + crop_wh[1] + 1), fill=CROP_COLOUR, width=2)
    frame = (crop_x - 2, crop_y - 2, crop_x + crop_wh[0] + 1, crop_y + crop_wh[1] + 1)
    draw.rectangle(frame, outline=CROP_COLOUR, width=3)


def _answer(draw: ImageDraw.ImageDraw, column: int, title: str, text: str, right: bool | None) -> None:
    """Draw an answer in large letters under its panel; `right` None: it is the reference answer."""
    left, top = _panel_left(column), _panel_top() + PANEL_PX + 18
    _text(draw, (left, top), title, 18, FAINT)
    colour = TEXT_COLOUR if right is None else RIGHT if right else WRONG
    shown = _shortened(draw, text or "(nothing)", PANEL_PX - VERDICT_PX)
    _text(draw, (left, top + 26), shown, ANSWER_PX, colour)
    if right is not None:
        end = left + draw.textlength(shown, font=_font(ANSWER_PX))
        _text(draw, (end + 18, top + 46), "right" if right else "wrong", 22, colour)


def _shortened(draw: ImageDraw.ImageDraw, text: str, room_px: int) -> str:
    """An answer, shortened to fit one line."""
    if draw.textlength(text, font=_font(ANSWER_PX)) <= room_px:
        return text
    while text and draw.textlength(f"{text}...", font=_font(ANSWER_PX)) > room_px:
        text = text[:-1]
    return f"{text}..."


def _text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, size_px: int, colour: Colour = TEXT_COLOUR
) -> None:
    draw.text(xy, text, fill=colour, font=_font(size_px))


def _font(size_px: int) -> Font:
    return ImageFont.load_default(size_px)
