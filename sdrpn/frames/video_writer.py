"""An annotated video, written frame by frame through PyAV (the extra `video`)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from sdrpn.errors import RunFailed
from sdrpn.frames.video import pyav
from sdrpn.host.line_file import disk_advice
from sdrpn.method.overlay import BACKGROUND

__all__ = ["VideoWriter"]

# The first that this PyAV has: its wheels have both, a build against another FFmpeg may not.
_CODECS = ("libx264", "libopenh264", "mpeg4")
_CLOCK_HZ = 1000  # times in the file are milliseconds: frames of a camera come when they come
_USUAL_FPS = 25.0  # of frames without a time


class VideoWriter:
    """Writes an MP4 file; a context manager. The file is complete when the block ends, also by Ctrl-C."""

    def __init__(self, path: Path, *, fps: float | None = None) -> None:
        """Args: fps: of frames without a time of their own"""
        self._path, self._step_s = path, 1 / (fps or _USUAL_FPS)
        self._av = pyav("writing videos")
        self._container: Any = None
        self._stream: Any = None
        self._size_wh: tuple[int, int] | None = None
        self._last_tick = -1
        self.frames = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, picture: Image.Image, time_s: float | None = None) -> None:
        """Append a picture; one of another size than the first is fitted into it.

        Args: time_s: when it is shown; None, or not after the one before: a step later
        Raises: RunFailed where the file cannot be written
        """
        try:
            if self._container is None:
                self._open(picture.size)
            frame = self._av.VideoFrame.from_ndarray(np.asarray(self._fitted(picture)), format="rgb24")
            frame.pts, frame.time_base = self._tick(time_s), Fraction(1, _CLOCK_HZ)
            self._container.mux(self._stream.encode(frame))
            self.frames += 1
        except (self._av.error.FFmpegError, OSError) as error:
            self._container = None  # there is nothing to complete
            raise self._failed(error) from error

    def close(self) -> None:
        """Write what the encoder holds back, and the index."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
            container.close()
        except (self._av.error.FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def _open(self, size_wh: tuple[int, int]) -> None:
        self._size_wh = size_wh
        self._container = self._av.open(str(self._path), mode="w", format="mp4")
        name = next((name for name in _CODECS if name in self._av.codecs_available), _CODECS[-1])
        self._stream = self._container.add_stream(name, rate=round(1 / self._step_s))
        self._stream.width, self._stream.height = size_wh
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK_HZ)
        if name == "mpeg4":
            self._stream.bit_rate = 4_000_000

    def _fitted(self, picture: Image.Image) -> Image.Image:
        assert self._size_wh is not None  # it is open
        if picture.size == self._size_wh:
            return picture
        canvas = Image.new("RGB", self._size_wh, BACKGROUND)
        scale = min(self._size_wh[0] / picture.width, self._size_wh[1] / picture.height)
        part = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        canvas.paste(part, ((canvas.width - part.width) // 2, (canvas.height - part.height) // 2))
        return canvas

    def _tick(self, time_s: float | None) -> int:
        tick = -1 if time_s is None else round(time_s * _CLOCK_HZ)
        if tick <= self._last_tick:
            tick = self._last_tick + (max(1, round(self._step_s * _CLOCK_HZ)) if self._last_tick >= 0 else 1)
        self._last_tick = tick
        return tick

    def _failed(self, error: Exception) -> RunFailed:
        return RunFailed(
            f"writing the video {self._path} failed ({' '.join(str(error).split())}); {disk_advice(error)}"
        )
