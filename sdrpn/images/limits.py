"""Limits on the work and memory that a small file can cost its decoder. Reads headers only; decodes no pixel."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import IO

from sdrpn.errors import BadImage

__all__ = ["check_file_size", "check_jpeg_scans", "check_size", "without_png_text"]

MAX_SIDE_PX = 100_000  # resizing holds a strip of R columns and as many rows as the longer side
# OpenJPEG holds several copies in 32 bits per channel: 20 bytes per pixel (measured), where other decoders take 4.
MAX_JPEG2000_PIXELS = 25_000_000

# A blank picture of 196 million pixels takes 12 to 220 kB as a file, and over a gigabyte of memory (measured).
LARGE_PIXELS, MAX_PIXELS_A_BYTE = 50_000_000, 500

# A progressive JPEG is decoded once per scan, and an empty scan takes ten bytes. Encoders write about ten scans.
MAX_SCANS = 100
ALWAYS_ALLOWED_SCANS = 20
MAX_SCANNED_PIXELS = 1_000_000_000

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pillow refuses a picture with long text or a long profile. Neither changes the pixels; XMP may hold the orientation.
_PNG_ASIDE = frozenset((b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"))
_LONGEST_KEPT_BYTES = 65536
_XMP = b"XML:com.adobe.xmp\0\0"  # not compressed
_PNG_CHUNKS, _PNG_BYTES_A_CHUNK = 4000, 512  # chunks that are always allowed; bytes that each needs above

_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_SOS, _EOI, _SOI = 0xDA, 0xD9, 0xD8


def check_size(size_wh: tuple[int, int], label: str, max_pixels: int, file_format: str | None = None) -> None:
    """Raise BadImage for a picture without pixels, or with more than `max_pixels`."""
    width, height = size_wh
    if width < 1 or height < 1:
        raise BadImage(f"{label} is {width}x{height} px; expected at least 1x1")
    if width * height > max_pixels:
        raise BadImage(
            f"{label} is {width}x{height} = {width * height:,} px; the limit is {max_pixels:,}: scale it down first"
        )
    if max(size_wh) > MAX_SIDE_PX:
        raise BadImage(f"{label} is {width}x{height} px; the limit for a side is {MAX_SIDE_PX:,}: cut it into parts")
    if file_format == "JPEG2000" and width * height > MAX_JPEG2000_PIXELS:
        raise BadImage(
            f"{label} is {width}x{height} = {width * height:,} px; the limit for JPEG 2000 is {MAX_JPEG2000_PIXELS:,}, "
            "because its decoder takes 20 bytes per pixel: save it as PNG or JPEG"
        )


def check_file_size(size_bytes: int, size_wh: tuple[int, int], label: str) -> None:
    """Raise BadImage for a large picture in so few bytes that it must be blank."""
    pixels = size_wh[0] * size_wh[1]
    if pixels > LARGE_PIXELS and pixels > MAX_PIXELS_A_BYTE * size_bytes:
        raise BadImage(
            f"{label} is {size_wh[0]}x{size_wh[1]} = {pixels:,} px in {size_bytes:,} bytes: it is blank, or made to "
            f"fill memory; the limit above {LARGE_PIXELS:,} px is {MAX_PIXELS_A_BYTE} px per byte: scale it down first"
        )


def check_jpeg_scans(data: bytes, size_wh: tuple[int, int], label: str) -> None:
    """Raise BadImage for a JPEG file with so many scans that decoding would take minutes."""
    pixels = max(1, size_wh[0] * size_wh[1])
    limit = min(MAX_SCANS, max(ALWAYS_ALLOWED_SCANS, MAX_SCANNED_PIXELS // pixels))
    found = 0
    for marker in _jpeg_markers(data):
        found += marker == _SOS
        if found > limit:
            raise BadImage(f"{label} is a JPEG of more than {limit} scans; expected about 10: save it again")


def without_png_text(file: IO[bytes], label: str) -> IO[bytes]:
    """The PNG file without long texts and profiles. Raises BadImage.

    A copy is made only where something is removed; otherwise the file itself is returned.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    kept, dropped = [(0, len(PNG_SIGNATURE))], False
    for number, (name, start, end) in enumerate(_png_chunks(file, size_bytes)):
        if number > _PNG_CHUNKS + size_bytes // _PNG_BYTES_A_CHUNK:
            raise BadImage(f"{label} is a PNG of more than {number:,} chunks in {size_bytes:,} bytes: save it again")
        if name in _PNG_ASIDE and not _is_worth_keeping(file, name, start, end):
            dropped = True
        else:
            kept.append((start, end))
    if not dropped:
        return file
    return io.BytesIO(b"".join(_range(file, start, end) for start, end in kept))


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """The markers of one image. Bytes are searched for markers only after a scan, where 0xFF is always stuffed."""
    place = 2
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = found[1][0], found.end()
        if marker == _EOI:
            return
        yield marker
        if marker not in (0x01, _SOI) and place + 2 <= len(data):
            place += max(2, int.from_bytes(data[place : place + 2], "big"))


def _png_chunks(file: IO[bytes], size_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of every chunk, with its checksum, as byte offsets; the last chunk may be cut off."""
    start = len(PNG_SIGNATURE)
    while start + 8 <= size_bytes:
        file.seek(start)
        length, name = struct.unpack(">I4s", file.read(8))
        end = min(start + 12 + length, size_bytes)
        yield name, start, end
        start = end


def _is_worth_keeping(file: IO[bytes], name: bytes, start: int, end: int) -> bool:
    if end - start > _LONGEST_KEPT_BYTES:
        return False
    return name == b"eXIf" or (name == b"iTXt" and _range(file, start + 8, end).startswith(_XMP))


def _range(file: IO[bytes], start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)
