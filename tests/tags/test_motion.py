"""Moving tags: where they are said to be, in their lanes, at any time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sdrpn.tags.motion import moving_scene
from sdrpn.tags.scene import COLOURS


@pytest.mark.parametrize("seed", range(4))
def test_tags_stay_inside_and_apart(seed: int) -> None:
    scene = moving_scene(seed)
    assert len(scene.boxes(0)) == len(scene.tags) == 4
    for time_s in np.linspace(0, 60, 200):
        boxes = sorted(scene.boxes(time_s).values(), key=lambda box: box[1])
        assert all(0 <= x1 < x2 <= 840 and 0 <= y1 < y2 <= 840 for x1, y1, x2, y2 in boxes)
        assert all(upper[3] < lower[1] for upper, lower in itertools.pairwise(boxes))


def test_a_tag_is_drawn_where_it_is() -> None:
    scene = moving_scene(0)
    for time_s in (0, 1.7, 20):
        pixels = np.asarray(scene.frame(time_s))
        for colour, (x1, y1, x2, y2) in scene.boxes(time_s).items():
            near = pixels[y1 + (y2 - y1) // 5, (x1 + x2) // 2]
            assert tuple(near) == COLOURS[colour]


def test_they_move_and_the_background_stays() -> None:
    scene = moving_scene(0)
    assert scene.boxes(0) != scene.boxes(0.2)
    still = np.asarray(scene.background)
    changed = (np.asarray(scene.frame(3)) != still).any(axis=-1)
    for x1, y1, x2, y2 in scene.boxes(3).values():
        changed[y1 - 8 : y2 + 9, max(0, x1 - 8) : x2 + 9] = False
    assert not changed.any()


def test_a_seed_is_a_scene() -> None:
    assert moving_scene(5).tags == moving_scene(5).tags
    assert moving_scene(5).tags != moving_scene(6).tags
