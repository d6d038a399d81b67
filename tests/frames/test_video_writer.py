"""An annotated video: as many frames as were added, at their times, whole whatever ended it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import RunFailed
from sdrpn.frames.video import open_video_file
from sdrpn.frames.video_writer import VideoWriter
from tests.frames.movies import halves
from tests.tolerances import VIDEO_SCALED_COLOUR_ABS, VIDEO_TIME_S


def picture(number: int, wh: tuple[int, int] = (160, 96)) -> Image.Image:
    return Image.fromarray(halves(number, wh))


def times_of(path: Path) -> list[float | None]:
    video = open_video_file(path)
    times = [frame.time_s for frame in video.frames()]
    video.close()
    return times


def test_frames_at_their_times(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4") as writer:
        for number, time_s in enumerate((0.0, 0.04, 0.5, 0.51)):
            writer.add(picture(number), time_s)
    assert writer.frames == 4
    assert times_of(tmp_path / "v.mp4") == pytest.approx([0, 0.04, 0.5, 0.51], abs=VIDEO_TIME_S)


def test_without_times_at_a_steady_rate(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", fps=4) as writer:
        for number in range(4):
            writer.add(picture(number))
    assert times_of(tmp_path / "v.mp4") == pytest.approx([0, 0.25, 0.5, 0.75], abs=VIDEO_TIME_S)


def test_times_that_go_back_go_on(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", fps=10) as writer:
        for time_s in (1.0, 1.0, 0.2):
            writer.add(picture(0), time_s)
    assert times_of(tmp_path / "v.mp4") == pytest.approx([0, 0.1, 0.2], abs=VIDEO_TIME_S)


def test_another_size_is_fitted_in(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4") as writer:
        writer.add(picture(0), 0)
        writer.add(picture(0, (96, 96)), 0.1)
    video = open_video_file(tmp_path / "v.mp4")
    pixels = [frame.pixels() for frame in video.frames()]
    video.close()
    assert [each.shape for each in pixels] == [(96, 160, 3)] * 2
    assert pixels[1][60, 5].max() < 60  # the border
    assert np.abs(pixels[1][60, 50].astype(int) - (40, 200, 40)).max() < VIDEO_SCALED_COLOUR_ABS


def test_it_is_whole_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with VideoWriter(tmp_path / "v.mp4") as writer:
            writer.add(picture(0), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(times_of(tmp_path / "v.mp4")) == 1


def test_nothing_added_writes_nothing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4"):
        pass
    assert not (tmp_path / "v.mp4").exists()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    def write() -> None:
        with VideoWriter(tmp_path / "none" / "v.mp4") as writer:
            writer.add(picture(0), 0)

    with pytest.raises(RunFailed, match=r"writing the video .* failed \(.*No such file.*; name a folder"):
        write()
