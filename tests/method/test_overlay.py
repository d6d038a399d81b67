"""The picture of what was looked at."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.method.geometry import PaddedGrid
from sdrpn.method.grids import Box
from sdrpn.method.overlay import IMAGE_SIDE_PX, MARGIN_PX, draw_overlay

G = 24
GREY = (90, 90, 90)


def hot_cell(x: int, y: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    roi_map = np.zeros((G, G), np.float32)
    roi_map[y, x] = 0.9
    return roi_map


@pytest.mark.parametrize("image_wh", [(1, 1), (1, 10_000), (10_000, 1), (97, 61), (336, 336), (4000, 1000), (300, 900)])
@pytest.mark.parametrize("with_map", [True, False])
def test_any_size_is_drawn_at_a_sensible_one(image_wh: tuple[int, int], with_map: bool) -> None:
    image = Image.new("RGB", image_wh, GREY)
    drawn = draw_overlay(image, hot_cell(11, 11) if with_map else None, [(0, 0, *image_wh)])
    assert drawn.mode == "RGB"
    assert max(drawn.size) <= 2 * IMAGE_SIDE_PX + 3 * MARGIN_PX
    assert min(drawn.size) > 2 * MARGIN_PX


@pytest.mark.parametrize("image_wh", [(400, 400), (800, 400), (400, 800), (640, 480)])
@pytest.mark.parametrize("cell_xy", [(11, 11), (8, 13), (14, 9)])
def test_heat_lies_where_the_cell_is(image_wh: tuple[int, int], cell_xy: tuple[int, int]) -> None:
    x, y = cell_xy
    drawn = np.asarray(draw_overlay(Image.new("RGB", image_wh, GREY), hot_cell(x, y), []), np.float32)
    scale = IMAGE_SIDE_PX / max(image_wh)
    shown = drawn[MARGIN_PX : MARGIN_PX + int(image_wh[1] * scale)]
    columns = (shown.shape[1] - int(image_wh[0] * scale)) // 2  # a narrow image stands in the middle over its caption
    heat = np.abs(shown[:, columns : shown.shape[1] - columns] - GREY).sum(axis=2)
    heat[:, : max(0, MARGIN_PX - columns)] = 0
    heat[:, heat.shape[1] - max(0, MARGIN_PX - columns) :] = 0
    hottest_y, hottest_x = np.unravel_index(heat.argmax(), heat.shape)
    box = PaddedGrid(image_wh, 336, G).box_px_from_cells((x, y, x + 1, y + 1))
    assert box is not None
    slack = 2 / scale
    assert box[0] - slack <= hottest_x / scale <= box[2] + slack
    assert box[1] - slack <= hottest_y / scale <= box[3] + slack


def test_no_heat_leaves_the_image_as_it_is() -> None:
    image = Image.new("RGB", (64, 64), GREY)
    assert draw_overlay(image, np.zeros((G, G), np.float32), []).getpixel((MARGIN_PX + 300, MARGIN_PX + 300)) == GREY


def test_crops_stand_beside_the_image() -> None:
    image = Image.new("RGB", (64, 64), GREY)
    image.paste((250, 0, 0), (8, 8, 24, 24))
    alone = draw_overlay(image, None, [])
    with_crop = draw_overlay(image, None, [(8, 8, 24, 24)])
    both = draw_overlay(image, None, [(8, 8, 24, 24)], [(8, 8, 24, 24), (32, 32, 64, 64)])
    assert alone.width < both.width < with_crop.width  # two crops share the height of one
    assert alone.height == with_crop.height == both.height
    assert with_crop.getpixel((with_crop.width - 300, 300)) == (250, 0, 0)


def test_boxes_that_are_not_crops_are_drawn_too() -> None:
    image = Image.new("RGB", (64, 64), GREY)
    crops: list[Box] = [(0, 0, 60, 60)]
    assert draw_overlay(image, None, [(30, 30, 40, 40)], crops) != draw_overlay(image, None, [], crops)


def test_the_image_is_not_drawn_on() -> None:
    image = Image.new("RGB", (640, 640), GREY)
    draw_overlay(image, hot_cell(3, 3), [(0, 0, 64, 64)])
    assert image.getcolors() == [(640 * 640, GREY)]


def test_a_large_image_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    draw_overlay(Image.new("RGB", (2000, 1000), GREY), hot_cell(3, 12), [(0, 0, 2000, 1000)])


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 0, 65, 5)])
def test_boxes_outside_the_image(box: Box) -> None:
    with pytest.raises(BadInput, match="is empty or extends beyond the image of 64x64 px"):
        draw_overlay(Image.new("RGB", (64, 64)), None, [box])
