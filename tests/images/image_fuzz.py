"""Mutated pictures of every format, opened and prepared: a picture, or one line that refuses it.

`python -m tests.images.image_fuzz --count 20000 [--pillow]` tries that many in this process and prints what went
wrong, the largest CPU time and memory, as JSON. A crash ends the process; the number of the mutant stands in --at.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdrpn.errors import BadImage
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.runtime.pictures import jpeg, pixels
from sdrpn.runtime.pictures import picture as picture_module
from sdrpn.runtime.pictures.picture import open_picture

__all__ = ["mutant", "seeds"]

VISION = VisionSpec(image_size_px=56, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
Rng = np.random.Generator


def _picture(mode: str, width: int = 48, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((2 * width, 2 * height)).convert(mode)


def _deep() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 48), dtype=np.uint16))


def seeds() -> dict[str, bytes]:
    """Well-formed files by name; those of formats that this Pillow cannot write are left out."""
    exif = Image.Exif()
    exif[0x0112] = 6
    several: dict[str, Any] = {"save_all": True, "append_images": [_picture("RGB")]}
    wanted: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "JPEG": (_picture("RGB"), "JPEG", {"exif": exif}),
        "progressive JPEG": (_picture("RGB"), "JPEG", {"progressive": True, "subsampling": 0}),
        "grey JPEG": (_picture("L"), "JPEG", {}),
        "CMYK JPEG": (_picture("CMYK"), "JPEG", {}),
        "MPO": (_picture("RGB"), "MPO", several),
        "PNG": (_picture("RGB"), "PNG", {"exif": exif, "icc_profile": b"profile" * 20}),
        "palette PNG": (_picture("P"), "PNG", {"transparency": 3}),
        "16-bit PNG": (_deep(), "PNG", {}),
        "RGBA PNG": (_picture("RGBA"), "PNG", {}),
        "1-bit PNG": (_picture("1"), "PNG", {}),
        "APNG": (_picture("RGB"), "PNG", several),
        "WEBP": (_picture("RGB"), "WEBP", {"exif": exif}),
        "lossless WEBP": (_picture("RGBA"), "WEBP", {"lossless": True}),
        "animated WEBP": (_picture("RGB"), "WEBP", several),
        "GIF": (_picture("P"), "GIF", {}),
        "animated GIF": (_picture("P"), "GIF", several),
        "BMP": (_picture("RGB"), "BMP", {}),
        "palette BMP": (_picture("P"), "BMP", {}),
        "TIFF": (_picture("RGB"), "TIFF", {"exif": exif}),
        "TIFF LZW": (_picture("RGB"), "TIFF", {"compression": "tiff_lzw"}),
        "TIFF deflate": (_picture("RGBA"), "TIFF", {"compression": "tiff_adobe_deflate"}),
        "TIFF JPEG": (_picture("RGB"), "TIFF", {"compression": "jpeg"}),
        "TIFF G4": (_picture("1"), "TIFF", {"compression": "group4"}),
        "TIFF packbits": (_picture("L"), "TIFF", {"compression": "packbits"}),
        "16-bit TIFF": (_deep(), "TIFF", {}),
        "float TIFF": (_picture("F"), "TIFF", {}),
        "PPM": (_picture("RGB"), "PPM", {}),
        "AVIF": (_picture("RGB"), "AVIF", {"exif": exif}),
        "JPEG 2000": (_picture("RGB"), "JPEG2000", {}),
        "JPEG 2000 codestream": (_picture("RGBA"), "JPEG2000", {"no_jp2": True, "tile_size": (32, 32)}),
        "ICO": (_picture("RGBA"), "ICO", {"sizes": [(16, 16), (32, 32)]}),
        "ICO BMP": (_picture("RGBA"), "ICO", {"sizes": [(32, 32)], "bitmap_format": "bmp"}),
        "QOI": (_picture("RGB"), "QOI", {}),
        "HEIF": (_picture("RGB"), "HEIF", {}),
    }
    made = {}
    for name, (image, file_format, options) in wanted.items():
        buffer = io.BytesIO()
        try:
            _register_heif() if file_format == "HEIF" else None
            image.save(buffer, file_format, **options)
        except (KeyError, OSError, ImportError):
            continue
        made[name] = buffer.getvalue()
    return made


def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()


def _flip(data: bytearray, rng: Rng) -> None:
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= 1 << int(rng.integers(8))


def _flip_in_head(data: bytearray, rng: Rng) -> None:
    for place in rng.integers(0, min(len(data), 200), rng.integers(1, 5)):
        data[place] = int(rng.integers(256))


def _extreme(data: bytearray, rng: Rng) -> None:
    """A field of 1 to 4 bytes at one of its limits."""
    size = int(rng.choice([1, 2, 4]))
    place = int(rng.integers(0, max(1, min(len(data), 400) - size)))
    value = int(
        rng.choice([0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, 20_000 % 2 ** (8 * size)])
    )
    data[place : place + size] = value.to_bytes(size, "big" if rng.integers(2) else "little")


def _cut(data: bytearray, rng: Rng) -> None:
    del data[int(rng.integers(1, len(data))) :]


def _remove(data: bytearray, rng: Rng) -> None:
    start = int(rng.integers(0, len(data)))
    del data[start : start + int(rng.integers(1, 64))]


def _repeat(data: bytearray, rng: Rng) -> None:
    start, size = int(rng.integers(0, len(data))), int(rng.integers(1, 256))
    data[start:start] = data[start : start + size] * int(rng.integers(1, 40))


def _rubbish(data: bytearray, rng: Rng) -> None:
    start = int(rng.integers(0, len(data)))
    data[start : start + 64] = rng.bytes(int(rng.integers(1, 128)))


MUTATIONS: tuple[Callable[[bytearray, Rng], None], ...] = (
    _flip,
    _flip_in_head,
    _extreme,
    _cut,
    _remove,
    _repeat,
    _rubbish,
)


def mutant(files: dict[str, bytes], number: int) -> tuple[str, bytes]:
    """Mutant `number`: what it was made of, and its bytes. PNG checksums are right in half of them."""
    rng = np.random.default_rng(number)
    name = list(files)[number % len(files)]
    data = bytearray(files[name])
    for _ in range(int(rng.integers(1, 4))):
        if len(data) > 1:
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    if "PNG" in name and rng.integers(2):
        _mend_checksums(data)
    return name, bytes(data)


def _mend_checksums(data: bytearray) -> None:
    """So that what follows them is reached."""
    import zlib

    place = 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            return
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4


def try_mutant(data: bytes) -> str | None:
    """None for a picture or a refusal of one line; else what went wrong."""
    try:
        picture = open_picture(data, threads=1)
        picture.write_base(VISION, np.empty((1, 3, 56, 56), np.float32))
    except BadImage as error:
        return None if "\n" not in str(error) else f"more than one line: {error!r}"
    except Exception as error:  # whatever it is: that is what is looked for
        return f"{type(error).__name__}: {error}"
    return None


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Try, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--pillow", action="store_true", help="as where the native module was not compiled")
    parser.add_argument("--at", type=Path, help="file that has the number of the mutant at work")
    args = parser.parse_args()
    if args.pillow:
        for module in (pixels, picture_module, jpeg):
            vars(module)["native_module"] = lambda name="_native": None
    warnings.filterwarnings("ignore", module=r"PIL\.")
    files, wrong, slowest, largest = seeds(), [], (0.0, -1), (0, -1)
    before = peak_bytes()
    for number in range(args.first, args.first + args.count):
        if args.at is not None:
            args.at.write_text(str(number))
        name, data = mutant(files, number)
        start, held = time.process_time(), peak_bytes()
        problem = try_mutant(data)
        slowest = max(slowest, (round(time.process_time() - start, 2), number))
        if peak_bytes() > held:
            largest = max(largest, (peak_bytes() - before, number))
        if problem is not None:
            wrong.append({"number": number, "made of": name, "problem": problem[:300]})
    json.dump({"formats": len(files), "wrong": wrong, "slowest": slowest, "largest": largest}, sys.stdout)


if __name__ == "__main__":
    main()
