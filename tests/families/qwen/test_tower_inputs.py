"""Patches, rotary tables, windows and entries of the table of positions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.families.qwen.patches import patch_places
from sdrpn.families.qwen.tower_inputs import evenly_spaced, position_entries, rotary_tables, window_layout
from sdrpn.images.image import open_image
from sdrpn.images.patches import crop_patches, picture_patches
from tests.families.qwen.official import run_named, runs, vision_3, vision_25
from tests.tolerances import PIXEL_VALUES_ABS, ROPE_TABLE_ABS


@pytest.mark.parametrize("name", runs("plain"))
def test_pixels_are_those_of_the_official_processor(name: tuple[str, str, str]) -> None:
    run = run_named(name)
    patches = picture_patches(open_image(run.picture), run.vision)
    count, numbers = run.arrays["pixel_values_shape"]
    assert patches.shape == (count, numbers // 2)
    side = run.vision.patch_size_px**2
    official = run.arrays["pixel_values_head"].reshape(8, 3, 2, side)
    assert np.array_equal(official[:, :, 0], official[:, :, 1])  # both frames are the picture
    assert np.abs(patches[:8].reshape(8, 3, side) - official[:, :, 0]).max() <= PIXEL_VALUES_ABS
    exact = patches.astype(np.float64)
    sums = 2 * exact.sum(), 2 * np.abs(exact).sum()
    assert np.allclose(sums, run.arrays["pixel_values_sum"], rtol=1e-7, atol=1e-2)


@pytest.mark.parametrize("name", runs("gateon", "sdrpn"))
def test_pixels_of_crops(name: tuple[str, str, str]) -> None:
    run = run_named(name)
    if "crop_pixel_values_head" not in run.arrays:
        return
    box = run.arrays["box_px"].tolist()
    patches = crop_patches(open_image(run.picture), (box[0], box[1], box[2], box[3]), run.vision)
    assert len(patches) == run.arrays["crop_pixel_values_shape"][0]
    official = run.arrays["crop_pixel_values_head"].reshape(4, 3, 2, -1)[:, :, 0]
    assert np.abs(patches[:4].reshape(official.shape) - official).max() <= PIXEL_VALUES_ABS


def test_patches_follow_each_other_token_by_token() -> None:
    picture = Image.new("RGB", (56, 56))
    for y in range(4):
        for x in range(4):
            picture.paste((10 * y, 10 * x, 7), (14 * x, 14 * y, 14 * x + 14, 14 * y + 14))
    vision = vision_25()
    patches = picture_patches(picture, vision).reshape(16, 3, -1)
    mean, std = np.array(vision.image_mean), np.array(vision.image_std)
    colours = np.rint((patches[:, :, 0] * std + mean) * 255).astype(int)
    rows, columns = patch_places((2, 2), 2)
    assert rows.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert columns.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]
    assert colours.tolist() == [[10 * y, 10 * x, 7] for y, x in zip(rows, columns, strict=True)]


def test_a_crop_outside_the_picture() -> None:
    with pytest.raises(BadInput, match="extends beyond the image"):
        crop_patches(Image.new("RGB", (60, 60)), (0, 0, 61, 60), vision_25())
    with pytest.raises(BadInput, match="mode L; expected RGB"):
        picture_patches(Image.new("L", (60, 60)), vision_25())


def test_rotary_tables_turn_by_row_and_column() -> None:
    vision = vision_25()
    cos, sin = rotary_tables((2, 3), vision)
    assert cos.shape == sin.shape == (24, vision.head_dim // 2)
    rows, columns = patch_places((2, 3), 2)
    frequencies = 1 / 10000 ** (np.arange(4) / 4)
    angles = np.concatenate((rows[:, None] * frequencies, columns[:, None] * frequencies), axis=1)
    assert np.abs(cos - np.cos(angles)).max() <= ROPE_TABLE_ABS
    assert np.abs(sin - np.sin(angles)).max() <= ROPE_TABLE_ABS


@pytest.mark.parametrize("hw", [(4, 4), (8, 4), (9, 12), (1, 1), (1, 9), (5, 3), (10, 10)])
def test_windows_hold_every_patch_once(hw: tuple[int, int]) -> None:
    vision = vision_25()
    layout = window_layout(hw, vision)
    patches = 4 * hw[0] * hw[1]
    assert layout.rows.shape == layout.valid.shape == (-(-hw[0] // 4) * -(-hw[1] // 4), 64)
    assert sorted(layout.rows[layout.valid]) == list(range(patches))
    assert layout.rows.reshape(-1)[layout.slots].tolist() == list(range(patches))
    assert layout.valid.reshape(-1)[layout.slots].all()
    assert layout.is_ragged == bool(hw[0] % 4 or hw[1] % 4)
    rows, columns = patch_places(hw, 2)
    for window, seen in zip(layout.rows, layout.valid, strict=True):
        inside = window[seen]
        assert len(set(zip(rows[inside] // 8, columns[inside] // 8, strict=True))) == 1
        assert set(window) == set(inside)  # empty slots repeat a patch of the same window


def test_entries_of_the_table_of_positions_are_bilinear() -> None:
    vision = vision_3()
    table = np.random.default_rng(0).normal(size=(64, 5))
    hw = (3, 7)
    entries = position_entries(hw, vision)
    found = (table[entries.rows] * entries.weights[..., None]).sum(axis=0)
    rows, columns = patch_places(hw, 2)
    for number, (y, x) in enumerate(zip(rows * 7 / 5, columns * 7 / 13, strict=True)):
        y1, x1 = min(int(y + 1e-9), 6), min(int(x + 1e-9), 6)
        square = table.reshape(8, 8, 5)[y1 : y1 + 2, x1 : x1 + 2]
        across = square[:, 0] * (x1 + 1 - x) + square[:, 1] * (x - x1)
        expected = across[0] * (y1 + 1 - y) + across[1] * (y - y1)
        assert np.abs(found[number] - expected).max() < 1e-5


def test_the_corners_of_the_table_are_those_of_the_picture() -> None:
    entries = position_entries((4, 4), vision_3())  # 8 x 8 patches on 8 x 8 entries
    rows, columns = patch_places((4, 4), 2)
    nearest = entries.rows[entries.weights.argmax(axis=0), np.arange(64)]
    assert nearest.tolist() == (rows * 8 + columns).tolist()
    assert entries.rows.max() == 63
    assert np.abs(entries.weights.sum(axis=0) - 1).max() < 1e-6


@pytest.mark.parametrize("last", [7, 47, 31.5])
def test_evenly_spaced_numbers_are_torch_s(last: float) -> None:
    torch = pytest.importorskip("torch")
    for count in range(1, 130):
        for first in (0, 25):
            expected = torch.linspace(first, first + last, count, dtype=torch.float32).numpy()
            assert np.abs(evenly_spaced(first, first + last, count) - expected).max() <= 4e-6
    assert evenly_spaced(3, 9, 1).tolist() == [3.0]
