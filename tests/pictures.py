"""Picture files of every kind that must be handled, and files that are not pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["BROKEN", "PICTURES", "SIZE_WH", "bomb", "exif_rotated", "photo"]

SIZE_WH = (130, 90)
EXIF_ORIENTATION = 0x0112
Writer = Callable[[Path], Path]


def photo(size_wh: tuple[int, int] = SIZE_WH, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(H, W, 3) of noise with a white corner, so that its sides differ."""
    width, height = size_wh
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height * 4 // 9, : width * 5 // 13] = 255
    return pixels


def _saved(mode: str, suffix: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / f"picture{suffix}"
        Image.fromarray(photo()).convert(mode).save(path)
        return path

    return write


def exif_rotated(folder: Path) -> Path:
    """`photo()` stored lying on its side, with the note that it has to be turned."""
    path = folder / "rotated.png"
    lying = Image.fromarray(photo()).transpose(Image.Transpose.ROTATE_90)
    exif = lying.getexif()
    exif[EXIF_ORIENTATION] = 6
    lying.save(path, exif=exif)
    return path


def _transparent_palette(folder: Path) -> Path:
    path = folder / "palette.png"
    Image.fromarray(photo()).quantize(16).save(path, transparency=b"\x00\x80\xff")
    return path


def _sixteen_bit(suffix: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / f"deep{suffix}"
        Image.fromarray(photo()[..., 0].astype(np.uint16) * 257).save(path)
        return path

    return write


def _animated(suffix: str) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / f"moving{suffix}"
        first, second = (Image.fromarray(photo(seed=seed)) for seed in (0, 1))
        first.save(path, save_all=True, append_images=[second])
        return path

    return write


def _plain(*size_wh: int) -> Writer:
    def write(folder: Path) -> Path:
        path = folder / "plain.png"
        Image.new("RGB", (size_wh[0], size_wh[1]), (90, 140, 60)).save(path, compress_level=1)
        return path

    return write


# name -> (writes the file into a folder, its upright size)
PICTURES: dict[str, tuple[Writer, tuple[int, int]]] = {
    "RGB": (_saved("RGB", ".png"), SIZE_WH),
    "JPEG": (_saved("RGB", ".jpg"), SIZE_WH),
    "RGBA": (_saved("RGBA", ".png"), SIZE_WH),
    "palette": (_saved("P", ".png"), SIZE_WH),
    "palette with transparency": (_transparent_palette, SIZE_WH),
    "greyscale": (_saved("L", ".png"), SIZE_WH),
    "greyscale with alpha": (_saved("LA", ".png"), SIZE_WH),
    "black and white": (_saved("1", ".png"), SIZE_WH),
    "16-bit PNG": (_sixteen_bit(".png"), SIZE_WH),
    "16-bit TIFF": (_sixteen_bit(".tiff"), SIZE_WH),
    "CMYK": (_saved("CMYK", ".jpg"), SIZE_WH),
    "animated GIF": (_animated(".gif"), SIZE_WH),
    "animated WebP": (_animated(".webp"), SIZE_WH),
    "EXIF-rotated": (exif_rotated, SIZE_WH),
    "1x1": (_plain(1, 1), (1, 1)),
    "1x10000": (_plain(1, 10_000), (1, 10_000)),
    "10000x1": (_plain(10_000, 1), (10_000, 1)),
    "4000x3000": (_plain(4000, 3000), (4000, 3000)),
}


def bomb(folder: Path) -> Path:
    """A PNG of a few bytes whose header promises 60000x60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = folder / "bomb.png"
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def _cut(write: Writer) -> Writer:
    def write_cut(folder: Path) -> Path:
        path = write(folder)
        # A third: of an animation of two frames, the first is incomplete.
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
        return path

    return write_cut


def _file(name: str, content: bytes) -> Writer:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


# name -> (writes the file into a folder, what has to be said about it)
BROKEN: dict[str, tuple[Writer, str]] = {
    "truncated PNG": (_cut(_saved("RGB", ".png")), r"picture\.png cannot be decoded: damaged or cut off"),
    "truncated JPEG": (_cut(_saved("RGB", ".jpg")), r"picture\.jpg cannot be decoded: damaged or cut off"),
    "truncated GIF": (_cut(_animated(".gif")), r"moving\.gif cannot be decoded: damaged or cut off"),
    "empty": (_file("empty.png", b""), r"empty\.png is empty \(0 bytes\); expected a picture"),
    "text": (
        _file("notes.png", b"no picture\n"),
        r"notes\.png is not a picture that can be read; expected one of JPEG",
    ),
    "a folder": (lambda folder: folder, r" is a folder; expected a picture"),
    "missing": (lambda folder: folder / "gone.png", r"gone\.png does not exist; expected the path of a picture"),
    "decompression bomb": (bomb, r"bomb\.png is 60000x60000 = 3,600,000,000 px; the limit is 200,000,000: scale it"),
}
