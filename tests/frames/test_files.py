"""Folders, patterns and lists become files in the order in which people count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdrpn.errors import BadImage, BadInput, MissingDependency
from sdrpn.frames.files import FileSequence, files_of
from sdrpn.frames.raw import OpenSource
from sdrpn.frames.source import read_source
from tests.frames.fakes import FakeSource, number_of


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(text: object) -> list[str]:
    return [path.name for path in files_of(read_source(str(text)))]


class TestFolder:
    def test_pictures_and_videos_as_people_count(self, tmp_path: Path) -> None:
        touched(tmp_path, "f10.jpg", "f2.jpg", "f1.PNG", "clip.mp4", "notes.md", "below/f3.jpg")
        assert found(tmp_path) == ["clip.mp4", "f1.PNG", "f2.jpg", "f10.jpg"]

    def test_empty(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"holds no picture and no video \(it is empty\)"):
            files_of(read_source(str(tmp_path)))

    def test_only_others(self, tmp_path: Path) -> None:
        touched(tmp_path, "a.md", "b.csv")
        with pytest.raises(BadInput, match=r"holds no picture and no video \(it has a\.md, b\.csv\)"):
            files_of(read_source(str(tmp_path)))


class TestPattern:
    def test_matches_in_order(self, tmp_path: Path) -> None:
        touched(tmp_path, "b/2.jpg", "b/10.jpg", "a/1.jpg", "a/1.txt")
        assert found(tmp_path / "*" / "*") == ["1.jpg", "2.jpg", "10.jpg"]
        assert found(tmp_path / "**" / "*.jpg") == ["1.jpg", "2.jpg", "10.jpg"]

    def test_no_match(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match=r"the pattern '.*\*\.jpg' matches no file; expected a pattern such as"):
            files_of(read_source(f"{tmp_path}/*.jpg"))

    def test_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "shots").mkdir()
        with pytest.raises(BadInput, match=r"the folder .*/shoots does not exist; did you mean shots\?"):
            files_of(read_source(f"{tmp_path}/shoots/*.jpg"))

    def test_only_others(self, tmp_path: Path) -> None:
        touched(tmp_path, "a.md")
        with pytest.raises(BadInput, match=r"matches no picture and no video \(it has a\.md\)"):
            files_of(read_source(f"{tmp_path}/*"))


class TestList:
    def write(self, folder: Path, *lines: str) -> Path:
        path = folder / "list.txt"
        path.write_text("\n".join(lines))
        return path

    def test_in_its_own_order_and_relative_to_it(self, tmp_path: Path) -> None:
        touched(tmp_path, "shots/2.jpg", "shots/1.jpg")
        path = self.write(tmp_path, "# comment", "", "z.jpg", "a.mp4 ", "shots", str(tmp_path / "shots" / "*.jpg"))
        assert found(path) == ["z.jpg", "a.mp4", "1.jpg", "2.jpg", "1.jpg", "2.jpg"]

    @pytest.mark.parametrize("line", ["0", "rtsp://me:secret@camera", "-", "other.txt"])
    def test_what_does_not_belong_in_one(self, tmp_path: Path, line: str) -> None:
        with pytest.raises(BadInput, match=r"list\.txt line 2 names .*; expected pictures, videos, folders") as caught:
            files_of(read_source(str(self.write(tmp_path, "a.jpg", line))))
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"# nothing\n", "lists no file"), (b"\xff\xfe\x00", "is not text in UTF-8"), (None, "does not exist")],
    )
    def test_bad_lists(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "list.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            files_of(read_source(str(path)))


class TestSequence:
    def test_videos_between_pictures(self, tmp_path: Path) -> None:
        opened: list[FakeSource] = []

        def open_video(path: Path) -> OpenSource:
            opened.append(FakeSource([7, 8], times_s=[0, 0.5]))
            return opened[-1]

        paths = [tmp_path / "a.jpg", tmp_path / "b.mp4", tmp_path / "c.jpg"]
        frames = list(FileSequence(paths, open_video).frames())
        assert [(Path(str(frame.name)).name, frame.index, frame.time_s) for frame in frames] == [
            ("a.jpg", 0, None),
            ("b.mp4", 0, 0),
            ("b.mp4", 1, 0.5),
            ("c.jpg", 2, None),
        ]
        assert number_of(frames[2].pixels()) == 8
        assert opened[0].closed.is_set()

    def test_a_damaged_video_is_a_frame_that_cannot_be_read(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a.mp4", tmp_path / "b.jpg"]
        frames = list(FileSequence(paths, lambda path: FakeSource([1], error="it is cut off")).frames())
        assert [Path(str(frame.name)).name for frame in frames] == ["a.mp4", "a.mp4", "b.jpg"]
        with pytest.raises(BadImage, match="it is cut off"):
            frames[1].pixels()

    def test_without_the_library_it_ends(self, tmp_path: Path) -> None:
        def open_video(path: Path) -> OpenSource:
            raise MissingDependency("needs av")

        with pytest.raises(MissingDependency, match=re.escape("needs av")):
            list(FileSequence([tmp_path / "a.mp4"], open_video).frames())
