"""Cameras that speak RTSP: frames, broken connections, silence, passwords."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.frames.feed import FrameFeed, opener_of
from sdrpn.frames.frame import Frame
from sdrpn.frames.source import read_source
from sdrpn.frames.thinning import ReadOptions
from tests.frames.rtsp_camera import RtspCamera, rtsp_camera
from tests.tolerances import VIDEO_COLOUR_ABS


@pytest.fixture
def camera() -> Iterator[RtspCamera]:
    with rtsp_camera() as found:
        yield found


def feed_from(url: str, notes: list[str], **options: Any) -> FrameFeed:
    read = ReadOptions(drop=False, **options)
    return FrameFeed([opener_of(read_source(url), read, bytes)], read, note=notes.append)


def is_whole(frame: Frame) -> bool:
    """Green on the left, red on the right."""
    sides = frame.pixels[60, [20, 140]].astype(int)
    return bool(np.abs(sides - [(40, 200, 40), (200, 40, 40)]).max() < VIDEO_COLOUR_ABS)


def test_frames(camera: RtspCamera) -> None:
    with feed_from(camera.url(), []) as feed:
        frames = [next(feed) for _ in range(10)]
    assert all(map(is_whole, frames))
    assert [frame.index for frame in frames] == list(range(10))
    assert frames[0].source == camera.url()
    # Over UDP a lost packet would tear the picture.
    assert camera.requests[-2].startswith("SETUP RTP/AVP/TCP")


@pytest.mark.parametrize("hangs_up", [True, False])
def test_it_is_opened_again(camera: RtspCamera, hangs_up: bool) -> None:
    """Where the connection ends, and where it stays open and nothing more comes."""
    camera.a_connection, camera.hangs_up, notes = 12, hangs_up, list[str]()
    with feed_from(camera.url(), notes, read_timeout_s=0.4) as feed:
        frames = [next(feed) for _ in range(18)]
    assert all(map(is_whole, frames))
    assert [frame.index for frame in frames] == list(range(18))
    assert camera.requests.count("PLAY") >= 2
    assert feed.reconnects >= 1
    assert all(note.startswith(camera.url()) for note in notes)
    assert any("it is opened again" in note for note in notes)


def test_a_password(camera: RtspCamera) -> None:
    camera.password = "secret"
    with feed_from(camera.url("me:secret@"), []) as feed:
        frame = next(feed)
    assert is_whole(frame)
    assert frame.source == camera.url("me:***@")


@pytest.mark.parametrize("user", ["", "me:wrong@"])
def test_a_password_that_is_wrong(camera: RtspCamera, user: str) -> None:
    camera.password = "secret"
    message = (
        r"stream cannot be opened: it asks for another user or password; expected rtsp://USER:PASSWORD@HOST/\.\.\."
    )
    with feed_from(camera.url(user), []) as feed, pytest.raises(BadInput, match=message) as found:
        next(feed)
    assert "wrong" not in str(found.value)


def test_a_stream_that_is_not_there(camera: RtspCamera) -> None:
    url = f"{camera.url()}s"
    with feed_from(url, []) as feed, pytest.raises(BadInput, match="streams cannot be opened: server returned 404 Not"):
        next(feed)
