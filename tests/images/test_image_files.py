"""Picture files as cameras, scanners and programs write them: read well, or called what they are; limits first."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from sdrpn.errors import BadImage
from sdrpn.images import limits as image_limits
from sdrpn.images import picture_file
from sdrpn.images.image import open_image, read_jpeg_header
from sdrpn.images.limits import MAX_JPEG2000_PIXELS, MAX_SCANS
from sdrpn.runtime.pictures.picture import open_picture


def picture(width: int = 32, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def grey(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.asarray(open_image(Image.fromarray(values)))[..., 0]


# --- grey of more than 8 bits


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_that_uses_some_of_its_bits(bits: int, dtype: Any) -> None:
    full = 2**bits - 1
    ramp = np.linspace(0, full, 256).round().astype(dtype).reshape(16, 16)
    np.testing.assert_array_equal(grey(ramp), np.round(ramp / full * 255))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_twelve_bits_in_a_file_of_sixteen(file_format: str) -> None:
    ramp = (np.arange(64, dtype=np.uint16) * 65).reshape(8, 8)
    opened = np.asarray(open_image(encoded(Image.fromarray(ramp), file_format)))
    np.testing.assert_array_equal(opened[..., 0], np.round(ramp / 4095 * 255))


def test_a_dark_picture_of_sixteen_bits_stays_dark() -> None:
    assert grey(np.full((4, 4), 16000, np.uint16)).tolist() == [[62] * 4] * 4


def test_floats_far_apart() -> None:
    assert grey(np.array([[-3e38, 0.0, 3e38]], np.float32)).tolist() == [[0, 128, 255]]


# --- PNG


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_a_png_with_long_texts(compressed: bool, international: bool) -> None:
    info = PngImagePlugin.PngInfo()
    add = info.add_itxt if international else info.add_text
    add("parameters", "x" * 3_000_000, zip=compressed)
    data = encoded(picture(), "PNG", pnginfo=info)
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(picture()))


def test_a_png_with_a_long_profile() -> None:
    data = encoded(picture(), "PNG", icc_profile=bytes(range(256)) * 16384)
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(picture()))


def test_a_png_whose_text_is_a_bomb_or_damaged() -> None:
    data = encoded(picture(), "PNG")
    for content in (zlib.compress(bytes(50_000_000)), b"not zlib", b""):
        for name in (b"zTXt", b"iCCP", b"iTXt"):
            opened = open_image(with_chunks(data, png_chunk(name, b"key\0\0" + content)))
            np.testing.assert_array_equal(np.asarray(opened), np.asarray(picture()))


def test_a_png_is_turned_as_its_exif_or_xmp_says_beside_a_long_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    text = png_chunk(b"tEXt", b"key\0" + b"x" * 2_000_000)
    assert open_image(with_chunks(encoded(picture(), "PNG", exif=exif), text)).size == (24, 32)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    turning = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    assert open_image(with_chunks(encoded(picture(), "PNG"), text, turning)).size == (24, 32)


def test_a_png_of_a_million_chunks() -> None:
    with pytest.raises(BadImage, match=r"is a PNG of more than .* chunks"):
        open_image(with_chunks(encoded(picture(), "PNG"), png_chunk(b"tIME", b"") * 1_000_000))


# --- blank pictures of many pixels


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
def test_a_large_picture_in_a_few_bytes(file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "LARGE_PIXELS", 500_000)
    options = {"compression": "group4"} if file_format == "TIFF" else {}
    data = encoded(Image.new("1", (2000, 1000), 1), file_format, **options)
    with pytest.raises(BadImage, match=r"is 2000x1000 = 2,000,000 px in .* bytes: it is blank, or made to fill"):
        open_image(data)
    assert open_image(encoded(Image.new("1", (700, 700), 1), file_format, **options)).size == (700, 700)


def test_a_tiff_beyond_pillows_own_limit_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    try:
        open_image(encoded(picture(), "TIFF"))  # some releases of Pillow have no limit there
    except BadImage as error:
        assert "is larger than Pillow decodes" in str(error)  # noqa: PT017


# --- JPEG and JPEG 2000


def with_scans(count: int, size_wh: tuple[int, int] = (32, 24)) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = encoded(picture(*size_wh), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scans = data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - scans) + b"\xff\xd9"


@pytest.mark.parametrize("wrapped", [False, True], ids=["bytes", "file"])
def test_a_jpeg_of_thousands_of_scans(tmp_path: Path, wrapped: bool) -> None:
    data: bytes | Path = with_scans(2000)
    if wrapped:
        (tmp_path / "a.jpg").write_bytes(with_scans(2000))
        data = tmp_path / "a.jpg"
    for opening in (open_image, open_picture):
        with pytest.raises(BadImage, match=f"is a JPEG of more than {MAX_SCANS} scans; expected about 10"):
            opening(data)
    assert read_jpeg_header(with_scans(2000)) is None


def test_a_jpeg_of_a_few_scans_more_is_read() -> None:
    assert open_image(with_scans(MAX_SCANS)).size == (32, 24)


def test_scans_of_a_thumbnail_do_not_count() -> None:
    thumbnail = b"Exif\0\0" + b"\xff\xd8" + b"\xff\xda\x00\x02" * 1000
    assert open_image(encoded(picture(), "JPEG", exif=thumbnail)).size == (32, 24)


def test_a_large_jpeg_2000() -> None:
    side = int(MAX_JPEG2000_PIXELS**0.5) + 1
    data = bytearray(encoded(Image.new("L", (16, 16)), "JPEG2000", no_jp2=True))
    place = data.index(b"\xff\x51")  # SIZ: width and height stand 6 bytes after its marker, then again as the tile's
    data[place + 6 : place + 14] = struct.pack(">II", side, side)
    with pytest.raises(BadImage, match="the limit for JPEG 2000 is 25,000,000, because its decoder takes 20 bytes"):
        open_image(bytes(data))


# --- what Pillow does not read


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0" * 64


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a" + b"\x7f" * 40, "a JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40, "a JPEG XL picture"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 40, "a video"),
        (b"\x1aE\xdf\xa3" + b"\0" * 40, "a video"),
        (b"8BPS\0\1" + b"\0" * 40, "a Photoshop document"),
        (b"v/1\x01" + b"\0" * 40, "an OpenEXR picture"),
        (b"\0" * 128 + b"DICM" + b"\0" * 40, "a DICOM file"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04" + b"\0" * 40, "an archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n", "a git-lfs pointer"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"II*\0\x08\0\0\0" + b"\0" * 8, "a TIFF of a kind that Pillow cannot read"),
    ],
)
def test_it_is_called_what_it_is(data: bytes, name: str) -> None:
    with pytest.raises(BadImage, match=f"is not a picture that can be read: it is {name}") as caught:
        open_image(data)
    assert "\n" not in str(caught.value)


def test_heic_without_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_file, "_can_read_heif", lambda: False)
    with pytest.raises(BadImage, match=r"it is a HEIC picture; install its reader .pip install 'sdrpn\[heif\]'"):
        open_image(HEIC)


def test_heic_with_its_reader() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    plain = Image.new("RGB", (64, 48), (200, 10, 30))
    heif.from_pillow(plain).save(buffer, quality=100)
    opened = open_image(buffer.getvalue())
    assert opened.size == (64, 48)
    np.testing.assert_allclose(np.asarray(opened).reshape(-1, 3).mean(0), (200, 10, 30), atol=3)
    with pytest.raises(BadImage, match="HEI"):
        open_image(HEIC)


def test_a_tiff_of_floats_in_colour_is_named() -> None:
    def entry(tag: int, kind: int, count: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, kind, count, value)

    pixels = np.random.default_rng(0).random((4, 4, 3)).astype("<f4").tobytes()
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 20)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, len(pixels)), (339, 3, 3, 14)]
    head = struct.pack("<2sHI", b"II", 42, 20 + len(pixels)) + struct.pack("<6H", 32, 32, 32, 3, 3, 3)
    data = head + pixels + struct.pack("<H", len(entries)) + b"".join(entry(*field) for field in entries) + bytes(4)
    with pytest.raises(BadImage, match="it is a TIFF of a kind that Pillow cannot read; save it as PNG or JPEG"):
        open_image(data)


# --- nothing is printed


def test_libtiff_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg"):
        good = encoded(picture(64, 64), "TIFF", compression=compression)
        for seed in range(20):
            data = bytearray(good)
            for place in np.random.default_rng(seed).integers(8, len(data), 20):
                data[place] ^= 0x55
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    open_image(bytes(data))
                except BadImage as error:
                    assert "\n" not in str(error)  # noqa: PT017
    assert capfd.readouterr() == ("", "")
