"""The rendered street: the same for a seed, and its sign is too small for the model's first look."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.scripts import script_module

SCRIPT = Path(__file__).parents[2] / "examples" / "scene.py"
FIRST_LOOK_PX = 336


@pytest.fixture(scope="module")
def scene_module() -> ModuleType:
    return script_module("examples/scene.py")


def set_width(scene_module: ModuleType, monkeypatch: pytest.MonkeyPatch, width_px: int) -> None:
    """A smaller picture of the same scene; test_readme.py draws the whole one."""
    monkeypatch.setattr(scene_module, "OVERSAMPLING", 1.0)
    monkeypatch.setattr(scene_module, "WIDTH_PX", width_px)
    monkeypatch.setattr(scene_module, "HEIGHT_PX", width_px * 3 // 4)


def test_a_seed_is_a_picture(scene_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    set_width(scene_module, monkeypatch, 504)
    first, again, other = (np.asarray(scene_module.render_scene(seed).image) for seed in (0, 0, 1))
    assert first.shape == (378, 504, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_sign_is_there_and_small(scene_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    set_width(scene_module, monkeypatch, scene_module.WIDTH_PX // 2)
    scene = scene_module.render_scene(0)
    assert scene.image.size == (scene_module.WIDTH_PX, scene_module.HEIGHT_PX)
    left, top, right, bottom = scene.sign_box_xyxy_px
    board = np.asarray(scene.image.crop((left, top, right, bottom)), np.float32)
    # Dark green with light letters.
    assert board.reshape(-1, 3).mean(axis=0).argmax() == 1
    assert board.std() > 30
    # Three lines of text in a handful of the model's pixels: it takes the crop to read them.
    assert (bottom - top) * FIRST_LOOK_PX / scene.image.width < 14
    assert scene.sign_text == "MILL LANE No. 27 TEA & CAKE"
