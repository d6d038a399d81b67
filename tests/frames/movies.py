"""Videos that tests make: whole, cut off, turned, and with an unknown codec."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np

from sdrpn.frames.frame import Pixels

__all__ = ["CODECS", "cut_off", "halves", "movie", "streamed", "turned", "unknown_codec", "without_index"]

FPS = 25
# Containers that differ in how they say where a frame ends -> encoder, and the pixels that it takes.
CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "avi": ("mjpeg", "yuvj420p"),
    "mkv": ("mpeg4", "yuv420p"),
    "ts": ("mpeg2video", "yuv420p"),
    "mpg": ("mpeg1video", "yuv420p"),
    "wmv": ("wmv2", "yuv420p"),
}
_IDENTITY = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000 00000000 00000000 40000000")
# As telephones write it that were held upright: x and y are exchanged, one of them backwards.
_QUARTER_TURN = bytes.fromhex("00000000 00010000 00000000 ffff0000 00000000 00000000 00000000 00000000 40000000")


def halves(number: int, wh: tuple[int, int] = (160, 96)) -> Pixels:
    """Green on the left, red on the right, a white bar that moves, and noise that costs bytes: (H, W, 3)."""
    width, height = wh
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = (40, 200, 40), (200, 40, 40)
    left = 4 * number % (width - 8)
    pixels[: height // 4, left : left + 8] = 255
    pixels[-height // 8 :] = np.random.default_rng(number).integers(0, 256, (height // 8, width, 3))
    return pixels


def movie(path: Path, frames: Iterable[Pixels]) -> Path:
    """A video of 25 frames per second; its index is at the front, as in files for the web."""
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        _encode(container, path.suffix[1:], frames)
    return path


def streamed(path: Path, frames: Iterable[Pixels]) -> Path:
    """A Matroska file that was written in one go: it does not say how long it is."""

    class Pipe:
        def __init__(self, file: BinaryIO) -> None:
            self.write = file.write

    with path.open("wb") as file, av.open(Pipe(file), "w", format="matroska") as container:
        _encode(container, "mkv", frames)
    return path


def _encode(container: Any, name: str, frames: Iterable[Pixels]) -> None:
    codec, pixel_format = CODECS[name]
    stream: Any = container.add_stream(codec, rate=FPS)
    stream.pix_fmt, stream.bit_rate = pixel_format, 4_000_000
    for pixels in frames:
        if not stream.codec_context.is_open:
            stream.height, stream.width = pixels.shape[:2]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
    container.mux(stream.encode(None))


def cut_off(path: Path, share: float) -> Path:
    """A copy of the first part of a file; of a transport stream, whole packets."""
    data, cut = path.read_bytes(), path.with_stem(f"{path.stem}-cut")
    size = int(len(data) * share)
    cut.write_bytes(data[: size - size % 188 if path.suffix == ".ts" else size])
    return cut


def turned(path: Path) -> Path:
    """A copy of an MP4 file that is to be shown after a quarter turn."""
    data, copy = path.read_bytes(), path.with_stem(f"{path.stem}-turned")
    place = data.index(_IDENTITY, data.index(b"tkhd"))
    copy.write_bytes(data[:place] + _QUARTER_TURN + data[place + len(_IDENTITY) :])
    return copy


def without_index(path: Path) -> Path:
    """A copy of an MP4 file whose index has an unknown name, as if writing it was interrupted."""
    copy = path.with_stem(f"{path.stem}-without")
    copy.write_bytes(path.read_bytes().replace(b"moov", b"none"))
    return copy


def unknown_codec(path: Path) -> Path:
    """A copy of an AVI file of MJPEG that names a codec that there is not."""
    copy = path.with_stem(f"{path.stem}-unknown")
    copy.write_bytes(path.read_bytes().replace(b"MJPG", b"QQQQ"))
    return copy
