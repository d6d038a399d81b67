"""Box coordinates are a contract: pixels of the upright source, whatever was stored, turned or resized.

A marker is drawn on a picture, the picture is saved in one of eight EXIF orientations and opened as a session opens it.
The map is made from what the tower is given: cells fire whose patches have the marker's colour. So a mistake in the
orientation, in a resize, in the order of the patches or from cells to pixels moves the box.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrpn.families.qwen.grid import LEAST_CROP_PX
from sdrpn.families.qwen.sinks import border_kept
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, with_resize
from sdrpn.families.qwen.zoom import decide_zoom
from sdrpn.method.grids import Box
from sdrpn.method.spec import Scheme
from sdrpn.runtime.pictures.picture import JpegMode, Picture, open_picture
from tests.families.qwen.official import vision_3, vision_25

PICTURES = 400
MARKER, GROUND = (250, 20, 240), (40, 120, 60)
THRESHOLD = 0.3  # above what a cell beside the marker has after blurring (0.274), below every cell of the marker's
EXIF_ORIENTATION = 0x0112
STORED = {  # what a camera that writes this orientation has stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RATIOS = (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 2.39, 1 / 2.39, 5.0, 1 / 5, 12.0, 1 / 12)
BUDGETS = ((64, 128), (16, 120), (256, 256), (128, 400))


@dataclass(frozen=True)
class Trial:
    number: int
    vision: Qwen25Vision | Qwen3Vision
    image_wh: tuple[int, int]
    orientation: int
    file_format: str
    jpeg: JpegMode


def trial(number: int) -> Trial:
    rng = np.random.default_rng(number)
    make, budget = (vision_25, vision_3)[number % 2], BUDGETS[number // 2 % len(BUDGETS)]
    vision = make(*budget) if number % 3 else with_resize(make(*budget), "official")
    ratio, area = RATIOS[number % len(RATIOS)], float(rng.integers(150, 800)) ** 2
    width, height = max(60, round((area * ratio) ** 0.5)), max(60, round((area / ratio) ** 0.5))
    file_format = ("JPEG", "PNG", "JPEG", "WEBP")[number % 4]
    return Trial(number, vision, (width, height), 1 + number % 8, file_format, ("exact", "fast")[number // 8 % 2])


def marked_cells(hw: tuple[int, int], rng: np.random.Generator) -> Box:
    """Two cells or more. None in the first row or column of a map that may have sinks there.

    One free cell between the marker and a border would fire, too: blurring mirrors the marker there.
    """
    may_have_sinks = hw[0] * hw[1] > 256

    def span(count: int) -> tuple[int, int]:
        firsts = [] if may_have_sinks else [0]
        spans = [
            (first, last) for first in [*firsts, *range(2, count)] for last in [*range(first + 1, count - 1), count]
        ]
        return spans[int(rng.integers(len(spans)))]

    while True:
        (x1, x2), (y1, y2) = span(hw[1]), span(hw[0])
        if (x2 - x1) * (y2 - y1) > 1:
            return x1, y1, x2, y2


def marker_px(cells: Box, hw: tuple[int, int], image_wh: tuple[int, int]) -> Box:
    (x1, y1, x2, y2), (rows, columns), (width, height) = cells, hw, image_wh
    return (
        round(x1 * width / columns),
        round(y1 * height / rows),
        round(x2 * width / columns),
        round(y2 * height / rows),
    )


def stored(picture: Image.Image, orientation: int, file_format: str) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    transpose = STORED[orientation]
    file = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    turned = picture if transpose is None else picture.transpose(transpose)
    turned.save(file, file_format, exif=exif, **options)
    return file.getvalue()


def map_of(picture: Picture, vision: Qwen25Vision | Qwen3Vision) -> npt.NDArray[np.float32]:
    """(h,w) logits: positive where the tower sees the marker."""
    rows, columns = vision.grid(picture.size).hw
    merged = vision.merge**2
    patches = np.empty((rows * columns * merged, vision.patch_numbers), np.float32)
    picture.write_patches(vision, patches)
    channels = patches.reshape(rows, columns, merged, 3, -1).mean(axis=(2, 4))
    colours = (channels * np.array(vision.image_std) + np.array(vision.image_mean)) * 255
    part = (colours - GROUND) @ np.subtract(MARKER, GROUND) / float(np.sum(np.subtract(MARKER, GROUND) ** 2))
    return np.where(part > 0.5, np.float32(20), np.float32(-20))


def far(found: Sequence[int], expected: Sequence[int]) -> int:
    return max(abs(a - b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("numbers", [range(first, first + 50) for first in range(0, PICTURES, 50)], ids=str)
def test_boxes_lie_within_one_pixel_of_the_source(numbers: range) -> None:
    for number in numbers:
        case = trial(number)
        vision, image_wh = case.vision, case.image_wh
        grid = vision.grid(image_wh)
        cells = marked_cells(grid.hw, np.random.default_rng(1000 + number))
        marker = marker_px(cells, grid.hw, image_wh)
        source = Image.new("RGB", image_wh, GROUND)
        source.paste(MARKER, marker)

        picture = open_picture(stored(source, case.orientation, case.file_format), jpeg=case.jpeg)
        assert picture.size == image_wh, case
        scheme: Scheme = "q-zoom" if number % 5 else "sd-rpn"
        kept = border_kept(grid.hw, scheme)
        decision = decide_zoom(map_of(picture, vision), kept, vision.grid(picture.size), THRESHOLD, scheme)

        (crop,) = decision.crops
        wide, high = (marker[2] - marker[0] >= LEAST_CROP_PX, marker[3] - marker[1] >= LEAST_CROP_PX)
        box = crop.box_xyxy_px
        if wide:
            assert far(box[0::2], marker[0::2]) <= 1, (case, cells, box, marker)
        if high:
            assert far(box[1::2], marker[1::2]) <= 1, (case, cells, box, marker)
        # A box that grew to the least size still has the marker inside, but for one pixel.
        beyond = np.array(marker) - box
        assert (beyond[:2] >= -1).all(), (case, box, marker)
        assert (beyond[2:] <= 1).all(), (case, box, marker)
        if wide and high:
            inner = np.asarray(picture.part(box), np.int64)[2:-2, 2:-2]
            assert np.abs(inner - MARKER).max() < 60, case  # the crop is the marker


def test_the_trials_cover_what_they_claim() -> None:
    trials = [trial(number) for number in range(PICTURES)]
    assert {case.orientation for case in trials} == set(range(1, 9))
    assert {case.file_format for case in trials} == {"JPEG", "PNG", "WEBP"}
    assert {case.vision.resize for case in trials} == {"once", "official"}
    ratios = [case.image_wh[0] / case.image_wh[1] for case in trials]
    assert min(ratios) < 0.1
    assert max(ratios) > 10
