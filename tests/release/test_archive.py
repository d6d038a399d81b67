"""Archives: what goes in comes out, each content once, and no byte can be changed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from sdrpn.errors import BadBundle, BadInput
from sdrpn.release.archive import Archive, open_archive
from sdrpn.release.keys import load_public_keys
from sdrpn.release.signature import require_signed_by
from tests.release.small_releases import CONTENT, small_archive, write_key_pair


def contents(path: Path) -> dict[str, bytes]:
    with open_archive(path) as archive:
        return {stored.sha256: b"".join(stored.pieces()) for stored in archive.objects()}


def test_contents_come_out_once(tmp_path: Path) -> None:
    path = tmp_path / "a.sdrpn"
    index = small_archive(path)
    assert sorted(contents(path).values()) == sorted(set(CONTENT.values()))
    assert index.size_bytes == sum(map(len, set(CONTENT.values())))
    with tarfile.open(path) as tar:  # and any tar reads it
        assert tar.getnames()[0] == "release.json"


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    small_archive(first), small_archive(second)
    assert first.read_bytes() == second.read_bytes()


def test_contents_that_nobody_read_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.sdrpn"
    small_archive(path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b"weights")] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadBundle, match=r"has other bytes than its index says"), open_archive(path) as archive:
        for _ in archive.objects():
            pass


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """A signed archive's bytes, and the public key."""
    folder = tmp_path_factory.mktemp("signed")
    private, public = write_key_pair(folder)
    small_archive(folder / "a.sdrpn", key=private)
    return (folder / "a.sdrpn").read_bytes(), public


class TestChanged:
    """A signed archive, read in full with its key."""

    @staticmethod
    def read(content: bytes, public: Path) -> None:
        archive = Archive(io.BytesIO(content), Path("a.sdrpn"))
        if archive.signed is None:
            raise BadBundle("a.sdrpn is not signed")
        require_signed_by(archive.signed, load_public_keys([public]), archive.index, archive.path)
        for _ in archive.objects():
            pass

    def refuses(self, content: bytes, public: Path) -> bool:
        try:
            self.read(content, public)
        except BadBundle:
            return True
        return False

    def test_as_it_was(self, signed: tuple[bytes, Path]) -> None:
        self.read(*signed)

    @pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.slow)])
    def test_any_byte(self, signed: tuple[bytes, Path], step: int) -> None:
        content, public = signed
        for position in range(0, len(content), step):
            changed = bytearray(content)
            changed[position] ^= 1 << position % 8
            assert self.refuses(bytes(changed), public), f"byte {position} of {len(content)} was changed and accepted"

    @pytest.mark.parametrize("keep", [0, 1, 511, 512, 700, -1, -512, -1024])
    def test_cut_off(self, signed: tuple[bytes, Path], keep: int) -> None:
        with pytest.raises(BadBundle):
            self.read(signed[0][:keep], signed[1])

    def test_something_added(self, signed: tuple[bytes, Path]) -> None:
        with pytest.raises(BadBundle, match="goes on after its end"):
            self.read(signed[0] + b"\0", signed[1])

    def test_an_object_twice(self, tmp_path: Path) -> None:
        path = tmp_path / "a.sdrpn"
        small_archive(path, {"bundle/a": b"x" * 512})
        content = path.read_bytes()
        member = content[-1024 - 1024 : -1024]
        path.write_bytes(content[:-1024] + member + content[-1024:])
        with pytest.raises(BadBundle, match="which its index does not have there"):
            contents(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short for a release"),
        (b"x" * 2048, "is not an archive of a release"),
        (b"\0" * 2048, "is not an archive of a release"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.sdrpn"
    path.write_bytes(content)
    with pytest.raises(BadBundle, match=message):
        contents(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist; expected an archive"):
        contents(tmp_path / "none")
    with pytest.raises(BadInput, match="is a folder; expected an archive"):
        contents(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "release.json", "model.sig", "bundle//a", "./a"])
def test_paths_that_leave_the_release(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.sdrpn"
    small_archive(path, {name: b"x"})
    with pytest.raises(BadBundle, match=r"names|lists"):
        contents(path)


def test_a_delta_lacks_what_the_other_has(tmp_path: Path) -> None:
    path = tmp_path / "a.sdrpn"
    left_out = hashlib.sha256(b"weights").hexdigest()
    small_archive(path, without=frozenset({left_out}))
    assert left_out not in contents(path)
