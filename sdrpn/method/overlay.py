"""Draw the RoI map over the image, and the crops beside it. Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from sdrpn.errors import BadInput
from sdrpn.method.geometry import Seen
from sdrpn.method.grids import Box, FloatArray

__all__ = [
    "BACKGROUND",
    "BOX_COLOUR",
    "CROP_COLOUR",
    "HEAT_COLOURS",
    "TEXT_COLOUR",
    "Colour",
    "draw_overlay",
    "fitted_part",
    "full_heat",
    "heat_colours",
    "heated",
    "outline_box",
]

Float32 = npt.NDArray[np.float32]
Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = Any  # Pillow's fonts share no base class

IMAGE_SIDE_PX = 640  # the longer side of the image as it is drawn; the crops beside it fill the same square
MARGIN_PX = 16
CAPTION_PX = 32  # height of the line under a picture
FONT_PX = 15
LINE_PX = 3
LEGEND_WH_PX = 90, 10
BACKGROUND: Colour = (24, 25, 28)
TEXT_COLOUR: Colour = (222, 224, 228)
BOX_COLOUR: Colour = (255, 255, 255)
CROP_COLOUR: Colour = (80, 220, 255)
DROPPED_COLOUR: Colour = (255, 170, 60)

# Dark violet over red to pale yellow, with increasing brightness, so that it also works in grey.
HEAT_COLOURS = np.array([(40, 10, 90), (130, 25, 120), (215, 60, 80), (250, 140, 40), (255, 240, 150)], np.float32)
HEAT_OPACITY = 0.75  # of the strongest cells; the weakest leave the image as it is
HEAT_FULL = 0.3  # a map with a lower peak stays pale, so that noise is not shown as a region


def draw_overlay(
    image: Image.Image,
    roi_map: Float32 | None,
    boxes_xyxy_px: Sequence[Box],
    crops_xyxy_px: Sequence[Box] | None = None,
    *,
    fit: Seen = "pad",
    dropped: Sequence[tuple[Box, str]] = (),
) -> Image.Image:
    """The image under its heat map with boxes, and each crop enlarged beside it.

    Args:
        image: upright RGB.
        roi_map: (h, w) in 0..1 over what `fit` says; None: no heat.
        boxes_xyxy_px: the boxes found, in pixels of the image.
        crops_xyxy_px: the crops that were encoded; None: the boxes.
        fit: what the map covers: "pad": the square around the image, "crop": the square in its middle, "whole": it.
        dropped: boxes that were found and left out, and why, in a few words.
    Raises: BadInput for a box that is empty or extends beyond the image.
    """
    crops = list(boxes_xyxy_px if crops_xyxy_px is None else crops_xyxy_px)
    _check_boxes(image, [*boxes_xyxy_px, *crops, *(box for box, _ in dropped)])
    shown = fitted_part(image, (0, 0, *image.size), (IMAGE_SIDE_PX, IMAGE_SIDE_PX))
    if roi_map is not None:
        shown = heated(shown, roi_map, fit)
    scale_xy = shown.width / image.width, shown.height / image.height
    for box, reason in dropped:
        outline_box(shown, box, scale_xy, DROPPED_COLOUR, reason)
    for box in boxes_xyxy_px:
        if box not in crops:
            outline_box(shown, box, scale_xy, BOX_COLOUR, "")
    for number, box in enumerate(crops, start=1):
        outline_box(shown, box, scale_xy, CROP_COLOUR, str(number) if len(crops) > 1 else "")
    columns = [[_captioned(shown, _map_caption(roi_map, len(crops)), roi_map)]]
    if crops:
        columns.append(_crop_panels(image, crops))
    return _arranged(columns)


def _check_boxes(image: Image.Image, boxes: Sequence[Box]) -> None:
    for x1, y1, x2, y2 in boxes:
        if not (0 <= x1 < x2 <= image.width and 0 <= y1 < y2 <= image.height):
            raise BadInput(
                f"the box {(x1, y1, x2, y2)} is empty or extends beyond the image of {image.width}x{image.height} px; "
                "expected x1, y1, x2, y2 in its pixels"
            )


def fitted_part(image: Image.Image, box: Box, room_wh: tuple[int, int]) -> Image.Image:
    """A part of the image, as large as the room allows; at least a pixel."""
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(room_wh[0] / width, room_wh[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # reducing_gap: a picture of 100 megapixels is first reduced coarsely; otherwise this takes seconds.
    return image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def heated(shown: Image.Image, roi_map: Float32, fit: Seen = "pad") -> Image.Image:
    """Lay the map over the image: it covers the padded square, whose middle is the image, the image's middle, or it."""
    side = max(shown.size) if fit == "pad" else min(shown.size)
    size = shown.size if fit == "whole" else (side, side)
    covered = Image.fromarray(roi_map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    seen = Image.new("F", shown.size)  # no heat where the model sees nothing
    seen.paste(covered, ((shown.width - size[0]) // 2, (shown.height - size[1]) // 2))
    strength = np.asarray(seen) / full_heat(roi_map)
    opacity: FloatArray = HEAT_OPACITY * strength.clip(0, 1)[..., None]
    blended: FloatArray = np.asarray(shown, np.float32) * (1 - opacity) + heat_colours(strength) * opacity
    return Image.fromarray(np.round(blended).astype(np.uint8))


def full_heat(roi_map: Float32) -> float:
    """The value that gets the last colour of the scale."""
    return max(float(roi_map.max()), HEAT_FULL)


def heat_colours(strength: FloatArray) -> Float32:
    """(..., 3) colours of strengths in 0..1."""
    steps = np.linspace(0, 1, len(HEAT_COLOURS))
    channels = [np.interp(strength, steps, HEAT_COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def outline_box(shown: Image.Image, box: Box, scale_xy: tuple[float, float], colour: Colour, label: str) -> None:
    """A line around a box, with dark edges so that it is visible on any picture, and a small label in its corner."""
    draw = ImageDraw.Draw(shown)
    x1, y1 = round(box[0] * scale_xy[0]), round(box[1] * scale_xy[1])
    x2, y2 = max(x1, round(box[2] * scale_xy[0]) - 1), max(y1, round(box[3] * scale_xy[1]) - 1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=BACKGROUND, width=LINE_PX + 2)
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=LINE_PX)
    if label:
        font = _font()
        width, height = max(FONT_PX + 5, int(draw.textlength(label, font=font)) + 12), FONT_PX + 5
        left, top = max(0, min(x1, shown.width - width)), min(y1, shown.height - height)
        draw.rectangle((left, top, left + width, top + height), fill=colour)
        draw.text((left + 6, top + 1), label, fill=BACKGROUND, font=font)


def _crop_panels(image: Image.Image, crops: Sequence[Box]) -> list[Image.Image]:
    height = (IMAGE_SIDE_PX - (len(crops) - 1) * (CAPTION_PX + MARGIN_PX)) // len(crops)
    panels = []
    for number, box in enumerate(crops, start=1):
        part = fitted_part(image, box, (IMAGE_SIDE_PX, max(1, height)))
        name = f"Crop {number}" if len(crops) > 1 else "Crop"
        panels.append(_captioned(part, f"{name}: {box[2] - box[0]} x {box[3] - box[1]} px at {box[0]}, {box[1]}", None))
    return panels


def _map_caption(roi_map: Float32 | None, crop_count: int) -> str:
    caption = "Image" if roi_map is None else f"RoI map, peak {float(roi_map.max()):.2f}"
    return caption if crop_count else f"{caption}, no crop"


def _captioned(picture: Image.Image, caption: str, roi_map: Float32 | None) -> Image.Image:
    """The picture over a line of text, and the heat scale where there is one."""
    font = _font()
    text_px = int(ImageDraw.Draw(picture).textlength(caption, font=font))
    legend_px = 0 if roi_map is None else LEGEND_WH_PX[0] + 5 * FONT_PX
    panel = Image.new("RGB", (max(picture.width, text_px + legend_px), picture.height + CAPTION_PX), BACKGROUND)
    panel.paste(picture, ((panel.width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(panel)
    middle_y = picture.height + CAPTION_PX // 2 + 2
    draw.text((0, middle_y), caption, fill=TEXT_COLOUR, font=font, anchor="lm")
    if roi_map is not None:
        top = f"{full_heat(roi_map):.2f}"
        draw.text((panel.width, middle_y), top, fill=TEXT_COLOUR, font=font, anchor="rm")
        bar_x = panel.width - int(draw.textlength(top, font=font)) - 6 - LEGEND_WH_PX[0]
        panel.paste(_legend(), (bar_x, middle_y - LEGEND_WH_PX[1] // 2))
        draw.text((bar_x - 6, middle_y), "0", fill=TEXT_COLOUR, font=font, anchor="rm")
    return panel


def _legend() -> Image.Image:
    row = heat_colours(np.linspace(0, 1, LEGEND_WH_PX[0], dtype=np.float32))
    return Image.fromarray(np.repeat(np.round(row).astype(np.uint8)[None], LEGEND_WH_PX[1], axis=0))


def _arranged(columns: Sequence[Sequence[Image.Image]]) -> Image.Image:
    widths = [max(panel.width for panel in column) for column in columns]
    heights = [sum(panel.height for panel in column) + MARGIN_PX * (len(column) - 1) for column in columns]
    canvas = Image.new("RGB", (sum(widths) + MARGIN_PX * (len(columns) + 1), max(heights) + 2 * MARGIN_PX), BACKGROUND)
    x = MARGIN_PX
    for column, width in zip(columns, widths, strict=True):
        y = MARGIN_PX
        for panel in column:
            canvas.paste(panel, (x, y))
            y += panel.height + MARGIN_PX
        x += width + MARGIN_PX
    return canvas


def _font() -> Font:
    return ImageFont.load_default(FONT_PX)
