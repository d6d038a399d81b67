"""JPEG files decoded by parts, against Pillow's pixels; without the native module too."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrpn.errors import BadImage
from sdrpn.images.image import open_image, read_jpeg_header
from sdrpn.runtime.pictures import jpeg
from sdrpn.runtime.pictures.jpeg import JpegFile
from tests.tolerances import DCT_SCALING_MEAN_STEPS

native: Any = pytest.importorskip("sdrpn._native_jpeg", exc_type=ImportError)


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpeg_file(data: bytes) -> JpegFile:
    header = read_jpeg_header(data)
    assert header is not None
    return JpegFile(data, data, header)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "native_module", lambda name: None)


def test_it_says_which_libjpeg_turbo_it_was_compiled_with() -> None:
    numbers = [int(number) for number in native.LIBJPEG_TURBO_VERSION.split(".")]
    assert numbers >= [2, 0, 90]


FORMS = [
    {"subsampling": subsampling, "progressive": progressive, "restart_marker_blocks": restart}
    for subsampling in (0, 1, 2, "4:1:1")
    for progressive in (False, True)
    for restart in (0, 3)
]


def sampled_at_every_second_row(data: bytes) -> bytes:
    """A file with chroma at every second column, which is said to have it at every second row: as many blocks."""
    assert data.count(b"\x01\x21\x00") == 1
    return data.replace(b"\x01\x21\x00", b"\x01\x12\x00")


def parts(rng: np.random.Generator, width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    yield 0, 0, width, height
    yield width - 1, height - 1, width, height
    for _ in range(10):
        x1, y1 = int(rng.integers(0, width)), int(rng.integers(0, height))
        yield x1, y1, int(rng.integers(x1, width)) + 1, int(rng.integers(y1, height)) + 1


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_part_is_that_of_the_whole(form: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    for size in ((1, 1), (17, 33), (403, 277)):
        data = encoded(smooth(*size), quality=80, **form)
        expected, file = np.asarray(Image.open(io.BytesIO(data))), jpeg_file(data)
        for x1, y1, x2, y2 in parts(rng, *size):
            np.testing.assert_array_equal(file.part((x1, y1, x2, y2)), expected[y1:y2, x1:x2])


def test_parts_with_chroma_at_every_second_row() -> None:
    data = sampled_at_every_second_row(encoded(smooth(320, 192), subsampling=1))
    expected, file = np.asarray(Image.open(io.BytesIO(data))), jpeg_file(data)
    for x1, y1, x2, y2 in parts(np.random.default_rng(4), 320, 192):
        np.testing.assert_array_equal(file.part((x1, y1, x2, y2)), expected[y1:y2, x1:x2])


def test_two_threads_decode_the_same() -> None:
    data = encoded(smooth(2000, 1200), subsampling=2)
    np.testing.assert_array_equal(jpeg_file(data).whole(threads=2), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_of_turned_files(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(70, 50), exif=exif.tobytes(), quality=95)
    upright, file = np.asarray(open_image(data)), jpeg_file(data)
    assert file.size == (upright.shape[1], upright.shape[0])
    np.testing.assert_array_equal(file.whole(), upright)
    np.testing.assert_array_equal(file.part((3, 11, 40, 44)), upright[11:44, 3:40])
    assert file.smaller(4).shape == (-(-upright.shape[0] // 4), -(-upright.shape[1] // 4), 3)


@pytest.mark.usefixtures("without_native")
@pytest.mark.parametrize("orientation", [1, 6])
def test_pillow_stands_in(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(70, 50), exif=exif.tobytes())
    upright, file = np.asarray(open_image(data)), jpeg_file(data)
    np.testing.assert_array_equal(file.whole(), upright)
    np.testing.assert_array_equal(file.part((3, 11, 40, 44)), upright[11:44, 3:40])
    assert file.smaller(2).shape == (-(-upright.shape[0] // 2), -(-upright.shape[1] // 2), 3)


def test_a_smaller_picture_is_the_same_picture() -> None:
    data = encoded(smooth(640, 480), quality=95)
    reduced = np.asarray(open_image(data).reduce(4), np.int16)
    found = jpeg_file(data).smaller(4)
    assert np.abs(found - reduced).mean() < DCT_SCALING_MEAN_STEPS


@pytest.mark.parametrize(
    "data",
    [
        encoded(smooth(64, 64)).replace(b"\xff\xd9", b""),
        encoded(smooth(64, 64))[:-200],
        encoded(smooth(64, 64), progressive=True)[:-200],
    ],
)
def test_files_that_are_cut_off_are_left_to_pillow(data: bytes) -> None:
    with pytest.raises(ValueError, match="libjpeg-turbo: "):
        native.decode(data, np.empty((64, 64, 3), np.uint8))
    with pytest.raises(BadImage, match="cannot be decoded: damaged or cut off"):
        jpeg_file(data).whole()
    with pytest.raises(BadImage, match="cannot be decoded: damaged or cut off"):
        jpeg_file(data).smaller(2)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes_are_left_to_pillow(mode: str) -> None:
    data = encoded(smooth(16, 16).convert(mode))
    assert read_jpeg_header(data) is None
    with pytest.raises(ValueError, match="has no three channels of 8 bits"):
        native.decode(data, np.empty((16, 16, 3), np.uint8))


def test_no_damage_does_harm() -> None:
    """Whatever the decoder makes of broken bytes, it says so or fills the array."""
    rng, out = np.random.default_rng(0), np.empty((96, 96, 3), np.uint8)
    for number in range(300):
        data = np.frombuffer(encoded(smooth(96, 96), progressive=number % 2 == 0), np.uint8).copy()
        data[rng.integers(2, len(data), int(rng.integers(1, 20)))] = rng.integers(0, 256)
        with contextlib.suppress(ValueError):
            native.decode(data.tobytes(), out)


@pytest.mark.parametrize(
    ("out", "options", "match"),
    [
        (np.empty((9, 16, 3), np.uint8), {}, "the part leaves the picture of 16x8 px"),
        (np.empty((8, 16, 3), np.uint8), {"left": 1}, "the part leaves"),
        (np.empty((4, 4, 3), np.uint8), {"top": -1}, "the part leaves"),
        (np.empty((4, 4, 3), np.uint8), {"left": 2**31 - 1}, "the part leaves"),
        (np.empty((5, 8, 3), np.uint8), {"denominator": 2}, "the part leaves the picture of 8x4 px"),
        (np.empty((4, 4, 3), np.uint8), {"denominator": 3}, "denominator is 3; expected 1, 2, 4 or 8"),
        (np.empty((0, 4, 3), np.uint8), {}, "out is not"),
        (np.empty((4, 4, 4), np.uint8), {}, "out is not"),
        (np.empty((4, 4, 3), np.uint8)[::-1], {}, "out is not"),
        (np.empty((4, 8, 3), np.uint8)[:, ::2], {}, "out is not"),
    ],
)
def test_what_is_refused(out: npt.NDArray[np.uint8], options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        native.decode(encoded(smooth(16, 8)), out, **options)


@pytest.mark.parametrize("out", [np.empty((8, 16, 3), np.float32), [1], None, np.empty((8, 16), np.uint8)])
def test_arrays_of_another_type(out: Any) -> None:
    with pytest.raises(TypeError):
        native.decode(encoded(smooth(16, 8)), out)
