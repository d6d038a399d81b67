"""Pictures of every kind, and the pixels that the vision tower reads."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrpn.errors import BadImage, BadInput
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.images.image import base_pixels, crop_pixels, image_digest, open_image
from tests.tolerances import PIXEL_VALUES_ABS

VISION = VisionSpec(image_size_px=336, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
RED = (200, 10, 30)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


# --- what opens


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("ICO", {"sizes": [(32, 32)]}),
    ],
)
def test_formats(tmp_path: Path, file_format: str, options: dict[str, Any]) -> None:
    picture = noise(32, 32)
    (tmp_path / "picture").write_bytes(encoded(picture, file_format, **options))
    for source in (tmp_path / "picture", str(tmp_path / "picture"), (tmp_path / "picture").read_bytes()):
        opened = open_image(source)
        assert opened.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(picture))


def test_jpeg_equals_pillows_own_reading(tmp_path: Path) -> None:
    noise(40, 30).save(tmp_path / "picture.jpg")
    np.testing.assert_array_equal(
        np.asarray(open_image(tmp_path / "picture.jpg")), np.asarray(Image.open(tmp_path / "picture.jpg"))
    )


def with_alpha(mode: str) -> Image.Image:
    image = Image.new("RGBA", (4, 3), (*RED, 0)).convert(mode)
    assert image.mode == mode
    return image


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([0, 0, 0, *RED])
    image.info["transparency"] = b"\xff\x00"
    return image


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGB", (4, 3), RED), RED),
        (with_alpha("RGBA"), RED),  # as LLaVA does it: the colour under full transparency
        (palette_with_transparency(), RED),
        (Image.new("LA", (4, 3), (77, 0)), (77, 77, 77)),
        (Image.new("L", (4, 3), 77), (77, 77, 77)),
        (Image.new("1", (4, 3), 1), (255, 255, 255)),
        (Image.new("CMYK", (4, 3), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("I;16", (4, 3), 65535), (255, 255, 255)),
        (Image.new("I;16", (4, 3), 257 * 77), (77, 77, 77)),
        (Image.new("I", (4, 3), 257 * 77), (77, 77, 77)),
        (Image.new("F", (4, 3), 0.5), (128, 128, 128)),
        (Image.new("F", (4, 3), 77.0), (77, 77, 77)),
        (Image.new("RGBa", (4, 3), (*RED, 255)), RED),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes(image: Image.Image, colour: tuple[int, int, int]) -> None:
    opened = open_image(image)
    assert opened.mode == "RGB"
    assert opened.size == (4, 3)
    assert np.asarray(opened).tolist() == [[list(colour)] * 4] * 3


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_files_are_scaled_not_clipped(file_format: str) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp), file_format)))
    np.testing.assert_array_equal(opened[..., 0], np.round(ramp / 257))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_beyond_every_full_scale_is_stretched(mode: str) -> None:
    dtype = np.int32 if mode == "I" else np.float32
    image = Image.fromarray(np.array([[-100_000, 0, 100_000]], dtype))
    assert np.asarray(open_image(image))[0, :, 0].tolist() == [0, 128, 255]


def test_grey_that_is_no_number() -> None:
    with pytest.raises(BadImage, match="the image has pixels that are NaN or infinite"):
        open_image(Image.fromarray(np.array([[0.0, np.nan]], np.float32)))


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_transparent_palette_files(transparency: Any) -> None:
    image = Image.new("P", (4, 3), 0)
    image.putpalette([*RED, 0, 0, 0])
    opened = open_image(encoded(image, "PNG", transparency=transparency))
    assert opened.getpixel((0, 0)) == RED


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(file_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((8, 8)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, file_format: str) -> None:
    upright = np.asarray(noise(3, 2))
    undo: dict[int, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),  # shown turned by 90 degrees clockwise: stored turned back
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    options = {"lossless": True} if file_format == "WEBP" else {}
    opened = open_image(encoded(stored, file_format, exif=exif.tobytes(), **options))
    np.testing.assert_array_equal(np.asarray(opened), upright)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_an_image_that_was_opened_is_not_turned_again(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_image(encoded(noise(20, 10), file_format, exif=exif.tobytes()))
    assert opened.size == (10, 20)
    again = open_image(opened)
    assert again.size == (10, 20)
    assert again.tobytes() == opened.tobytes()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored() -> None:
    data = encoded(noise(8, 8), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\xff garbage")
    assert open_image(data).size == (8, 8)


def test_arrays() -> None:
    array = np.asarray(noise(5, 4))
    np.testing.assert_array_equal(np.asarray(open_image(array)), array)
    np.testing.assert_array_equal(np.asarray(open_image(array[:, ::-1])), array[:, ::-1])


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    opened = open_image(encoded(noise(*size), "PNG"))
    assert opened.size == size
    assert base_pixels(opened, VISION).shape == (3, 336, 336)
    assert crop_pixels(opened, (0, 0, *size), VISION).shape == (3, 336, 336)


# --- what does not


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"picture is empty \(0 bytes\)"),
        (b"\x00", "is not a picture that can be read; expected one of JPEG"),
        (b"hello, this is a text and no picture", "is not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),  # would start Ghostscript
        (b"\xff\xd8\xff", "is not a picture|cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n", "is not a picture|cannot be decoded"),
        (encoded(noise(64, 64), "PNG")[:-3000], "cannot be decoded: damaged or cut off"),
        (encoded(noise(64, 64), "JPEG")[:-900], "cannot be decoded: damaged or cut off"),
        (encoded(noise(64, 64), "GIF")[:900], "cannot be decoded: damaged or cut off"),
        (encoded(noise(64, 64), "WEBP")[:900], "is not a picture|cannot be decoded"),
        (encoded(noise(64, 64), "TIFF")[:900], "is not a picture|cannot be decoded"),
        (png_header(100_000, 100_000), r"is 100000x100000 = 10,000,000,000 px; the limit is 200,000,000"),
        (png_header(60_000, 3_334), "200,040,000 px; the limit"),
        (png_header(2_000_000, 10), "is 2000000x10 px; the limit for a side is 100,000"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, data: bytes, match: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=match) as caught:
        open_image(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_cut_of_a_file_is_refused_or_read() -> None:
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encoded(noise(12, 12), file_format)
        for length in range(1, len(data), 7):
            with contextlib.suppress(BadImage):
                assert open_image(data[:length]).size == (12, 12)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("no/such/file.png", "no/such/file.png does not exist"),
        ("null\0character", "cannot be read"),
        (3, "an image is a path, bytes, a PIL image or an .* array; got int"),
        (None, "got NoneType"),
        (Image.new("RGB", (0, 4)), "the image is 0x4 px; expected at least 1x1"),
        (np.zeros((4, 5), np.uint8), r"has the shape \(4, 5\) and dtype uint8; expected \(H, W, 3\) uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"has the shape \(4, 5, 4\)"),
        (np.zeros((4, 5, 3), np.float32), "dtype float32"),
        (np.zeros((0, 5, 3), np.uint8), "5x0 px; expected at least 1x1"),
    ],
)
def test_sources_that_are_refused(source: Any, match: str) -> None:
    with pytest.raises(BadImage, match=match):
        open_image(source)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="is a folder; expected a picture"):
        open_image(tmp_path)


def test_pixel_limit_is_the_callers() -> None:
    picture = noise(10, 10)
    assert open_image(picture, max_pixels=100).size == (10, 10)
    for source in (picture, np.asarray(picture), encoded(picture, "PNG")):
        with pytest.raises(BadImage, match="10x10 = 100 px; the limit is 99"):
            open_image(source, max_pixels=99)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("limit", [1500, 400])  # Pillow would warn; Pillow would refuse
def test_pillows_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch, file_format: str, limit: int) -> None:
    data = encoded(noise(40, 40), file_format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    filters = list(warnings.filters)
    if file_format == "TIFF" and limit == 400:
        # Some releases of Pillow check once more while they decode, and refuse.
        with contextlib.suppress(BadImage):
            open_image(data)
    else:
        assert open_image(data).size == (40, 40)
    assert warnings.filters == filters
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_very_large_picture(tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000), 100).save(tmp_path / "large.png", compress_level=1)
    opened = open_image(tmp_path / "large.png")
    assert opened.size == (12_000, 9_000)
    assert base_pixels(opened, VISION).shape == (3, 336, 336)
    assert crop_pixels(opened, (0, 0, 12_000, 9_000), VISION).shape == (3, 336, 336)
    assert len(image_digest(opened)) == 32


# --- pixels


SIZES = [
    (1, 1),
    (1, 50),
    (640, 480),
    (300, 900),
    (336, 336),
    (97, 61),
    (1023, 1024),
    (336, 200),
    (3000, 1),
    (4000, 3000),
]


def normalised(image: Image.Image) -> npt.NDArray[Any]:
    values = np.asarray(image, np.float64) / 255
    return ((values - VISION.image_mean) / VISION.image_std).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_base_pixels_are_the_padded_square(size: tuple[int, int]) -> None:
    """The banded resize against the plain recipe that holds the whole square."""
    image, side = noise(*size), max(size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = normalised(square.resize((336, 336), Image.Resampling.BICUBIC))
    found = base_pixels(image, VISION)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=PIXEL_VALUES_ABS)


@pytest.mark.parametrize("size", SIZES)
def test_crop_pixels_are_the_squashed_crop(size: tuple[int, int]) -> None:
    """Against the plain recipe with its two passes apart: releases of Pillow differ in which comes first."""
    width, height = size
    box = (width // 4, height // 5, max(width // 4 + 1, width * 3 // 4), max(height // 5 + 1, height - height // 7))
    crop = noise(*size).crop(box)
    rows_first = crop.resize((336, crop.height), Image.Resampling.BILINEAR)
    expected = normalised(rows_first.resize((336, 336), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(crop_pixels(noise(*size), box, VISION), expected, rtol=0, atol=PIXEL_VALUES_ABS)


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (5, 5, 5, 5), (-1, 0, 5, 5), (0, 0, 11, 5), (0, 0, 5, 9), (6, 0, 5, 5)])
def test_crops_outside_the_image(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(BadInput, match="is empty or extends beyond the image; expected x1 < x2 <= 10 and y1 < y2 <= 8"):
        crop_pixels(noise(10, 8), box, VISION)


def test_pixels_want_rgb() -> None:
    with pytest.raises(BadInput, match="mode L; expected RGB"):
        base_pixels(Image.new("L", (4, 4)), VISION)


def test_digest_is_of_size_and_pixels(tmp_path: Path) -> None:
    picture = noise(6, 4)
    picture.save(tmp_path / "picture.png")
    assert image_digest(open_image(tmp_path / "picture.png")) == image_digest(picture)
    reshaped = Image.frombytes("RGB", (4, 6), picture.tobytes())
    changed = picture.copy()
    changed.putpixel((5, 3), (1, 2, 3))
    assert len({image_digest(image) for image in (picture, reshaped, changed)}) == 3
