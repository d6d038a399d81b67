"""What is drawn on a frame: boxes in the colour of their question, in sizes that encoders take."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.frames.annotation import LONGEST_SIDE_PX, SHORTEST_SIDE_PX, Marks, annotated, colour_of
from sdrpn.frames.frame import Frame, Pixels

GREY = np.full((300, 400, 3), 128, np.uint8)


def drawn(marks: list[Marks], pixels: Pixels = GREY) -> Pixels:
    return np.asarray(annotated(Frame(pixels, "clip.mp4", 7, 0.28), marks))


def test_a_box_in_the_colour_of_its_question() -> None:
    found = drawn([Marks("red ?", [((50, 60, 150, 160), 0.8)]), Marks("blue ?", [((200, 100, 300, 200), 0.4)])])
    assert tuple(found[159, 100]) == colour_of(0)
    assert tuple(found[199, 250]) == colour_of(1)
    assert tuple(found[30, 30]) == (128, 128, 128)


def test_the_score_of_a_box_at_the_edge_is_whole() -> None:
    """Its label is wider than the box, and lies further in the picture."""
    inside, edge = (drawn([Marks("red ?", [((x, 60, x + 5, 160), 0.8)])]) for x in (200, 395))
    width = int((inside[79, 200:] == colour_of(0)).all(axis=-1).argmin()) - 1
    assert width > 30
    assert np.array_equal(edge[60:80, 400 - width : 400], inside[60:80, 200 : 200 + width])


def test_lines_below_name_frame_and_questions() -> None:
    one, two = drawn([Marks("one ?", [])]), drawn([Marks("one ?", []), Marks("two ?", [])])
    assert two.shape[0] > one.shape[0] > 300
    assert (two[300:] == colour_of(1)).all(axis=-1).any()


def test_the_map_of_a_single_question() -> None:
    roi_map = np.zeros((4, 4), np.float32)
    roi_map[0, 0] = 1
    marks = [Marks("one ?", [], roi_map)]
    plain, heated = drawn([Marks("one ?", [])]), drawn(marks)
    assert not np.array_equal(plain[60:100, 10:50], heated[60:100, 10:50])
    assert np.array_equal(drawn([*marks, *marks])[:300], plain[:300])


@pytest.mark.parametrize("size_wh", [(401, 301), (4000, 3000), (31, 17), (3, 2001)])
def test_sides_are_even_and_within_limits(size_wh: tuple[int, int]) -> None:
    found = drawn([Marks("a long question " * 20, [])], np.zeros((size_wh[1], size_wh[0], 3), np.uint8))
    assert found.shape[0] % 2 == found.shape[1] % 2 == 0
    assert SHORTEST_SIDE_PX <= max(found.shape[:2]) <= LONGEST_SIDE_PX + 100


def test_why_a_bright_map_has_no_box() -> None:
    roi_map = np.full((4, 4), 0.9, np.float32)
    plain, told = (drawn([Marks("?", [], roi_map, why)]) for why in ((), ("more than 56 cells",)))
    assert np.array_equal(plain[:300], told[:300])
    assert not np.array_equal(plain[300:], told[300:])


def test_several_questions_say_why_there_is_no_map() -> None:
    roi_map = np.full((4, 4), 0.9, np.float32)
    with_maps, without = (drawn([Marks("?", [], found)] * 2) for found in (roi_map, None))
    assert np.array_equal(with_maps[:300], without[:300])
    assert not np.array_equal(with_maps[300:324], without[300:324])
    assert np.array_equal(with_maps[328:], without[328:])
