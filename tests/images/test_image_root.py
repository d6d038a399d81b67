"""Pictures below one folder: names that lead out are refused whatever is there, and links are resolved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sdrpn.errors import BadImage, BadInput
from sdrpn.images.image_root import ImageRoot


@pytest.fixture
def root(tmp_path: Path) -> ImageRoot:
    """A folder with a picture's bytes, in it and below it, beside a file that is not to be read."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "pictures"
    (folder / "shelf").mkdir(parents=True)
    (folder / "street.jpg").write_bytes(b"street")
    (folder / "shelf" / "label.png").write_bytes(b"label")
    return ImageRoot(folder)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("street.jpg", b"street"),
        ("shelf/label.png", b"label"),
        ("./shelf/../street.jpg", b"street"),
    ],
)
def test_a_name_below(root: ImageRoot, name: str, data: bytes) -> None:
    assert root.read(name) == data


def test_an_absolute_path_below(root: ImageRoot) -> None:
    assert root.read(str(root.folder / "street.jpg")) == b"street"


def test_links_inside_are_followed(root: ImageRoot) -> None:
    (root.folder / "link.jpg").symlink_to("street.jpg")
    (root.folder / "other").symlink_to("shelf")
    assert root.read("link.jpg") == b"street"
    assert root.read("other/label.png") == b"label"


def test_a_root_that_is_a_link(root: ImageRoot, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root.folder)
    assert ImageRoot(tmp_path / "alias").read("street.jpg") == b"street"


@pytest.mark.parametrize("name", ["../secret.png", "../missing.png", "/etc/passwd", "shelf/../../secret.png", ".."])
def test_a_name_that_leads_out(root: ImageRoot, name: str) -> None:
    """The same words whether or not there is a file."""
    with pytest.raises(BadImage, match="leads out of the image root; expected a path below it"):
        root.path(name)


@pytest.mark.parametrize("link", ["out.png", "out"])
def test_a_link_that_leads_out(root: ImageRoot, tmp_path: Path, link: str) -> None:
    (root.folder / "out.png").symlink_to(tmp_path / "secret.png")
    (root.folder / "out").symlink_to(tmp_path)
    with pytest.raises(BadImage, match="leads out of the image root"):
        root.read(link if link.endswith(".png") else f"{link}/secret.png")


def test_a_link_to_itself(root: ImageRoot) -> None:
    (root.folder / "loop").symlink_to("loop")
    with pytest.raises(BadImage, match="'loop' does not exist below the image root"):
        root.read("loop")


NAMES: list[Any] = ["", "a\0b", "x" * 2000, 3, None]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name)[:8])
def test_what_is_no_name(root: ImageRoot, name: Any) -> None:
    with pytest.raises(BadImage, match="is not the name of a picture; expected a path below the image root") as caught:
        root.path(name)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_missing_picture_with_a_similar_name(root: ImageRoot) -> None:
    with pytest.raises(BadImage, match=r"'stret\.jpg' does not exist below the image root; did you mean street\.jpg\?"):
        root.read("stret.jpg")


def test_names_outside_are_not_suggested(root: ImageRoot, tmp_path: Path) -> None:
    (root.folder / "away").symlink_to(tmp_path)
    with pytest.raises(BadImage) as caught:
        root.read("away/secrt.png")
    assert "secret" not in str(caught.value)


def test_a_folder_and_a_pipe(root: ImageRoot) -> None:
    os.mkfifo(root.folder / "pipe.png")
    with pytest.raises(BadImage, match="'shelf' is a folder; expected a picture"):
        root.read("shelf")
    with pytest.raises(BadImage, match=r"'pipe\.png' is not a regular file; expected a picture"):
        root.read("pipe.png")


def test_a_file_above_the_limit(root: ImageRoot) -> None:
    assert root.read("street.jpg", most_bytes=6) == b"street"
    with pytest.raises(BadImage, match="has more than 5 bytes; expected a smaller picture file"):
        root.read("street.jpg", most_bytes=5)


@pytest.mark.parametrize(("name", "what"), [("missing", "does not exist"), ("file", "is not a folder")])
def test_what_is_no_root(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=f"{name} {what}; expected a folder whose pictures may be read"):
        ImageRoot(tmp_path / name)


def test_what_lies_below(root: ImageRoot, tmp_path: Path) -> None:
    """Whether or not it exists."""
    (root.folder / "out").symlink_to(tmp_path)
    names = ["street.jpg", "missing.jpg", "../secret.png", "out/secret.png", "a\0b", str(root.folder / "shelf")]
    assert [root.holds(name) for name in names] == [True, True, False, False, False, True]


def test_a_folder_that_is_exchanged_meanwhile(root: ImageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that is open is the one that is checked."""
    (tmp_path / "label.png").write_bytes(b"elsewhere")
    resolved = root.path

    def exchange(name: str) -> Path:
        found = resolved(name)
        (root.folder / "shelf").rename(root.folder / "former")
        (root.folder / "shelf").symlink_to(tmp_path)
        return found

    monkeypatch.setattr(root, "path", exchange)
    with pytest.raises(BadImage, match="leads out of the image root"):
        root.read("shelf/label.png")
