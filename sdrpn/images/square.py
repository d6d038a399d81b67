"""A picture in the middle of a square of one colour. Pillow only."""

from __future__ import annotations

from PIL import Image

from sdrpn.method.grids import Box

__all__ = ["PADDING_RGB", "cells_of_square", "padded_to_square"]

PADDING_RGB = (127, 127, 127)  # of the official trainings that pad


def padded_to_square(picture: Image.Image, colour: tuple[int, int, int] = PADDING_RGB) -> Image.Image:
    """The smallest square around an RGB picture."""
    width, height = picture.size
    side = max(picture.size)
    if width == height:
        return picture
    square = Image.new("RGB", (side, side), colour)
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def cells_of_square(image_wh: tuple[int, int], hw: tuple[int, int]) -> Box:
    """The cells of a grid over the padded square that show any of the picture: x1, y1, x2, y2, upper ends exclusive."""
    (width, height), (rows, columns) = image_wh, hw
    side = max(image_wh)
    left, top = (side - width) // 2, (side - height) // 2
    return (
        left * columns // side,
        top * rows // side,
        -(-(left + width) * columns // side),
        -(-(top + height) * rows // side),
    )
