"""Which links of a folder are followed: those into it, into its cache's blobs, and into what is allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdrpn.errors import BadBundle, BadInput
from sdrpn.host import links
from sdrpn.host.links import AllowLinks, allowing_links, files_below, link_roots, real_file


def leads_to(path: Path, folder: Path, allow: AllowLinks = ()) -> Path:
    return real_file(path, link_roots(folder, allow), BadBundle)


def file_in(folder: Path, name: str = "f") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    return folder / name


def linked(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
    return path


def test_files_of_the_folder_and_links_inside_it(tmp_path: Path) -> None:
    inside = file_in(tmp_path / "m" / "..data")
    alias = linked(tmp_path / "alias", tmp_path / "m")
    for path in (inside, linked(tmp_path / "m" / "g", inside), alias / "g", tmp_path / "m" / "absent"):
        assert leads_to(path, alias).is_relative_to(tmp_path / "m")


def test_a_link_that_leaves_the_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    target = file_in(tmp_path / "disk")
    link = linked(tmp_path / "m" / "f", target)
    with pytest.raises(BadBundle, match=rf"is a link that leaves {tmp_path / 'm'}.*allow links to {target.parent}"):
        leads_to(link, link.parent)


def test_a_name_that_begins_like_the_folder_is_another_one(tmp_path: Path) -> None:
    link = linked(tmp_path / "m" / "f", file_in(tmp_path / "m2"))
    with pytest.raises(BadBundle, match="leaves"):
        leads_to(link, link.parent)


@pytest.mark.parametrize("allow", [True, "disk", Path("disk"), ["other", "disk"], (Path(),)])
def test_what_the_caller_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: AllowLinks) -> None:
    target = file_in(tmp_path / "disk" / "below")
    link = linked(tmp_path / "m" / "f", target)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    assert leads_to(link, link.parent, allow) == target


@pytest.mark.parametrize("allow", [False, (), ["other"]])
def test_what_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow: AllowLinks) -> None:
    link = linked(tmp_path / "m" / "f", file_in(tmp_path / "disk"))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadBundle, match="leaves"):
        leads_to(link, link.parent, allow)


@pytest.mark.parametrize("absent", ["dsik", "m/f/below", "n" * 300, "a\0b"])
def test_what_is_allowed_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    """Refused although no link of the folder leads anywhere."""
    file_in(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    expected = r"links are allowed to .*, which cannot be read \(.+\); name an existing folder"
    with pytest.raises(BadInput, match=expected) as caught:
        link_roots(tmp_path / "m", [absent])
    assert caught.value.options == ("allow_links",)
    with pytest.raises(BadInput, match=expected), allowing_links([Path(absent)]):
        pass


class TestCache:
    """REPOSITORY/snapshots/REVISION with links into REPOSITORY/blobs."""

    @pytest.mark.parametrize("below", ["", "bundles/7b"])
    def test_a_snapshot_and_a_folder_in_one(self, tmp_path: Path, below: str) -> None:
        blob = file_in(tmp_path / "models--me--b" / "blobs")
        link = linked(tmp_path / "models--me--b" / "snapshots" / "abc" / below / "weights" / "f", blob)
        assert leads_to(link, link.parents[1]) == blob

    def test_a_cache_that_is_reached_by_a_link(self, tmp_path: Path) -> None:
        blob = file_in(tmp_path / "disk" / "models--me--b" / "blobs")
        snapshot = linked(tmp_path / "disk" / "models--me--b" / "snapshots" / "abc" / "f", blob).parent
        cache = linked(tmp_path / "cache", tmp_path / "disk")
        assert leads_to(cache / snapshot.relative_to(tmp_path / "disk") / "f", cache / "models--me--b/snapshots/abc")

    def test_a_store_that_the_repositories_share(self, tmp_path: Path) -> None:
        stored = file_in(tmp_path / "blobs" / "ab", "abcd")
        blob = linked(tmp_path / "models--me--b" / "blobs" / "etag", stored)
        link = linked(tmp_path / "models--me--b" / "snapshots" / "abc" / "f", blob)
        with pytest.raises(BadBundle, match="leaves"):
            leads_to(link, link.parent)
        (tmp_path / "blobs" / ".huggingface-shared-blobs").write_text("1")
        assert leads_to(link, link.parent) == stored

    def test_blobs_of_another_repository(self, tmp_path: Path) -> None:
        blob = file_in(tmp_path / "models--you--b" / "blobs")
        file_in(tmp_path / "models--me--b" / "blobs")
        link = linked(tmp_path / "models--me--b" / "snapshots" / "abc" / "f", blob)
        with pytest.raises(BadBundle, match="leaves"):
            leads_to(link, link.parent)

    def test_blobs_that_are_a_link_themselves(self, tmp_path: Path) -> None:
        target = file_in(tmp_path / "etc")
        blobs = linked(tmp_path / "models--me--b" / "blobs", target.parent)
        link = linked(tmp_path / "models--me--b" / "snapshots" / "abc" / "f", blobs / "f")
        with pytest.raises(BadBundle, match="leaves"):
            leads_to(link, link.parent)


class TestPackage:
    """Installed as links, each into a store: uv's link mode, Nix, conda."""

    def test_data_beside_the_code_in_the_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store, site = tmp_path / "store" / "sdrpn", tmp_path / "site" / "sdrpn"
        link = linked(site / "default" / "f", file_in(store / "default"))
        monkeypatch.setattr(
            links, "__file__", str(linked(site / "host" / "links.py", file_in(store / "host", "links.py")))
        )
        monkeypatch.setattr(links, "_PACKAGE", store)
        assert leads_to(link, site / "default") == store / "default" / "f"

    def test_a_folder_elsewhere_gains_nothing(self, tmp_path: Path) -> None:
        link = linked(tmp_path / "m" / "f", links._PACKAGE / "default" / "manifest.json")
        with pytest.raises(BadBundle, match="leaves"):
            leads_to(link, link.parent)


class TestFilesBelow:
    def below(self, folder: Path, allow: AllowLinks = ()) -> list[str]:
        found = files_below(folder, link_roots(folder, allow), BadBundle)
        return [path.relative_to(folder).as_posix() for path in found]

    def test_linked_folders_and_files(self, tmp_path: Path) -> None:
        file_in(tmp_path / "m" / "weights", "a.bin")
        file_in(tmp_path / "disk" / "engines" / "l4", "b.engine")
        linked(tmp_path / "m" / "engines", tmp_path / "disk" / "engines")
        linked(tmp_path / "m" / "c.bin", tmp_path / "m" / "weights" / "a.bin")
        (tmp_path / "m" / "empty").mkdir()
        assert self.below(tmp_path / "m", tmp_path / "disk") == ["c.bin", "engines/l4/b.engine", "weights/a.bin"]
        with pytest.raises(BadBundle, match=r"engines is a link that leaves .*allow links to "):
            self.below(tmp_path / "m")

    @pytest.mark.parametrize(
        ("leads_to", "message"),
        [
            ("m/nothing", "is a link to .*nothing, which does not exist; remove it, or put that back"),
            ("m", "is a link to .*m, a folder that it is in; remove it"),
            ("m/below", "is a link to .*below, a folder that it is in; remove it"),
        ],
    )
    def test_links_that_cannot_be_followed(self, tmp_path: Path, leads_to: str, message: str) -> None:
        (tmp_path / "m" / "below").mkdir(parents=True)
        linked(tmp_path / "m" / "below" / "link", tmp_path / leads_to)
        with pytest.raises(BadBundle, match=message):
            self.below(tmp_path / "m")

    def test_links_to_each_other_end(self, tmp_path: Path) -> None:
        linked(tmp_path / "m" / "a" / "b", tmp_path / "m" / "c")
        (tmp_path / "m" / "c").mkdir()
        linked(tmp_path / "m" / "c" / "d", tmp_path / "m" / "a")
        with pytest.raises(BadBundle, match="a folder that it is in"):
            self.below(tmp_path / "m")
