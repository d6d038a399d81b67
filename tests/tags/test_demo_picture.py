"""The picture of the demo: three panels, answers in the colours of right and wrong, and nothing outside."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdrpn.method.geometry import Seen
from sdrpn.method.grids import Box
from sdrpn.method.overlay import CROP_COLOUR
from sdrpn.tags import Told, draw_demo
from sdrpn.tags.demo_picture import PANEL_PX, RIGHT, WRONG
from tests.pictures import photo


def drawn(
    plain: Told,
    again: Told,
    *,
    boxes: tuple[Box, ...] = ((10, 10, 30, 20),),
    image: Image.Image | None = None,
    first_look_wh: tuple[int, int] = (16, 16),
    seen: Seen = "pad",
) -> np.ndarray:
    picture = draw_demo(
        image or Image.fromarray(photo()),
        "what is it ?",
        "471",
        plain,
        again,
        roi_map=np.eye(4, dtype=np.float32),
        boxes_xyxy_px=boxes,
        first_look_wh=first_look_wh,
        seen=seen,
    )
    return np.asarray(picture)


def shows(pixels: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((pixels == colour).all(axis=-1).any())


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_answers_are_marked(plain: bool, again: bool) -> None:
    pixels = drawn(Told("1", plain), Told("2", again))
    answers = pixels[-110:]
    third = answers.shape[1] // 3
    for columns, right in ((answers[:, :third], plain), (answers[:, 2 * third :], again)):
        assert (shows(columns, RIGHT), shows(columns, WRONG)) == (right, not right)


def test_without_a_second_look() -> None:
    with_box, without = (drawn(Told("1", False), Told("1", False), boxes=boxes) for boxes in (((5, 5, 9, 9),), ()))
    assert with_box.shape == without.shape
    right = slice(2 * with_box.shape[1] // 3, None)
    panel = slice(150, 150 + PANEL_PX)
    assert shows(with_box[panel, right], CROP_COLOUR)
    assert not shows(without[panel, right], CROP_COLOUR)


@pytest.mark.parametrize("text", ["", "long " * 40])
def test_any_answer_fits(text: str) -> None:
    pixels = drawn(Told(text, False), Told(text, False))
    edge = pixels[:, -20:]
    assert (edge == edge[0, 0]).all()


@pytest.mark.parametrize("size", [(300, 40), (40, 300), (1, 1)])
def test_any_shape_of_picture(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (0, 90, 0))
    whole = (0, 0, *size)
    assert drawn(Told("1", True), Told("1", True), boxes=(whole,), image=image).shape[2] == 3


def test_a_model_that_reads_pictures_in_their_own_shape() -> None:
    """Its first look is the picture itself, and its map covers the picture alone."""
    image = Image.fromarray(photo()).resize((60, 20))
    square = drawn(Told("1", True), Told("2", True), image=image)
    whole = drawn(Told("1", True), Told("2", True), image=image, first_look_wh=(60, 20), seen="whole")
    panels = [slice(28 + column * 500, 28 + column * 500 + PANEL_PX) for column in range(3)]
    assert not np.array_equal(square[:, panels[0]], whole[:, panels[0]])
    assert not np.array_equal(square[:, panels[1]], whole[:, panels[1]])
    assert np.array_equal(square[150:, panels[2]], whole[150:, panels[2]])
