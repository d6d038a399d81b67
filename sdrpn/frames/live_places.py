"""Cameras and streams as PyAV opens them: devices, and options that keep what is read new."""

from __future__ import annotations

import sys
from pathlib import Path

from sdrpn.errors import BadInput
from sdrpn.frames.source import Source
from sdrpn.frames.thinning import ReadOptions
from sdrpn.frames.video import VideoPlace

__all__ = ["camera_place", "stream_place"]

_DEVICES = Path("/dev")
_MICROSECONDS = 1_000_000


def camera_place(source: Source, options: ReadOptions) -> VideoPlace:
    """A camera by its number or device, through Video4Linux. Raises BadInput where there is none."""
    if not sys.platform.startswith("linux"):
        raise BadInput(f"camera {source.place}: cameras are read on Linux alone; pass the URL of a stream here")
    device = _DEVICES / f"video{source.place}" if source.place.isdigit() else Path(source.place)
    if not device.exists():
        there = sorted(path.name for path in _DEVICES.glob("video*"))
        known = f"this machine has {', '.join(f'/dev/{name}' for name in there)}" if there else "this machine has none"
        if device == Path(source.place):
            raise BadInput(f"camera {device} is not there: {known}; name one that is")
        raise BadInput(
            f"camera {source.place} ({device}) is not there: {known}; a file of that name is ./{source.place}"
        )
    timeouts_s = options.open_timeout_s, options.read_timeout_s
    return VideoPlace(f"camera {source.place}", str(device), live=True, form="v4l2", timeouts_s=timeouts_s)


def stream_place(source: Source, options: ReadOptions) -> VideoPlace:
    """A URL. One over HTTP that says how long it is, is a video like a file."""
    scheme = source.place.partition("://")[0].lower()
    # Without FFmpeg's "nobuffer", which throws away what was read to recognise the stream: its first whole picture.
    buffers = {"flags": "low_delay"}
    if scheme in ("rtsp", "rtsps"):
        # Over UDP a lost packet tears the picture until the next whole one.
        buffers |= {"rtsp_transport": "tcp", "timeout": str(round(options.read_timeout_s * _MICROSECONDS))}
    return VideoPlace(
        source.name,
        source.place,
        live=None if scheme in ("http", "https") else True,
        options=buffers,
        timeouts_s=(options.open_timeout_s, options.read_timeout_s),
    )
