"""What a SOURCE means."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.frames.source import Given, Source, read_source, source_of, sources_of, without_password


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("-", "stdin"),
        ("0", "camera"),
        ("12", "camera"),
        ("/dev/video3", "camera"),
        ("./0", "picture"),
        ("1234", "picture"),
        ("rtsp://camera/one", "stream"),
        ("HTTP://camera/one.mjpg", "stream"),
        ("udp://@:1234", "stream"),
        ("street.jpg", "picture"),
        ("street", "picture"),
        ("street.MP4", "video"),
        ("clip.mkv", "video"),
        ("shots/*.jpg", "pattern"),
        ("shots/??.png", "pattern"),
        ("shots/[0-9].png", "pattern"),
        ("all.txt", "list"),
        ("no\0name", "picture"),
        ("x" * 5000, "picture"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert read_source(text) == Source(kind, text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("0", Source("camera", "0")),
        (0, Source("camera", "0")),
        (Path("0"), Source("picture", "0")),
        (Path("-"), Source("picture", "-")),
        ("street.png", Source("picture", "street.png")),
        (Path("clip.mp4"), Source("video", "clip.mp4")),
    ],
)
def test_one_by_itself_or_in_a_list(given: Given, expected: Source) -> None:
    assert source_of(given) == expected
    assert sources_of(given) == sources_of([given]) == sources_of((given,)) == [expected]


@pytest.mark.parametrize("given", [None, True, -1, 0.5, b"street.png", {"street.png"}])
def test_what_names_no_source(given: object) -> None:
    for asked in (given, [given]):
        with pytest.raises(BadInput, match=r"a source is .*; expected a text .*, a Path, or the number of a camera"):
            sources_of(asked)


def test_a_folder_is_one_whatever_its_name(tmp_path: Path) -> None:
    for name in ("shots", "shots.mp4", "list.txt", "a*b"):
        (tmp_path / name).mkdir()
        assert read_source(str(tmp_path / name)).kind == "folder"


def test_a_file_with_a_wildcard_in_its_name_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jpg").touch()
    assert read_source(str(tmp_path / "a[1].jpg")).kind == "picture"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a source is empty"),
        ("  ", "a source is empty"),
        (
            "rstp://camera",
            r"rstp://camera begins with rstp://, which is not read; did you mean rtsp\?; expected one of",
        ),
        ("file:///x", "begins with file://, which is not read"),
        ("rtsp:///stream", r"rtsp:///stream names no host; expected rtsp://HOST/\.\.\."),
        ("http://", "names no host"),
        ("rtsp://[::1/x", "names no host"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_source(text)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://user:secret@camera/one", "rtsp://user:***@camera/one"),
        ("rtsp://user@camera/one", "rtsp://user@camera/one"),
        ("http://camera/a:b@c", "http://camera/a:b@c"),
        ("street.jpg", "street.jpg"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert read_source(url).name == shown


def test_a_refused_url_shows_no_password() -> None:
    with pytest.raises(BadInput, match=r"ftp://me:\*\*\*@host") as caught:
        read_source("ftp://me:secret@host/x")
    assert "secret" not in str(caught.value)


def test_what_is_live() -> None:
    assert [read_source(text).is_live for text in ("0", "rtsp://x", "clip.mp4", "-")] == [True, True, False, False]
