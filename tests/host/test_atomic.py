"""Artefacts appear whole or not at all, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.host.atomic import (
    replacing_directory,
    replacing_file,
    require_free_space,
    require_writable_file,
    require_writable_folder,
)
from sdrpn.host.sizes import text_from_bytes

Replacing = Callable[[Path], AbstractContextManager[Path]]

INTERRUPTIONS = [ValueError("bad"), KeyboardInterrupt(), SystemExit(143), GeneratorExit(), MemoryError()]


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_and_raise(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


def fill_disk() -> None:
    """A real ENOSPC, not a made one."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


class TestReplacingFile:
    def test_the_file_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "overlay.png"
        with replacing_file(target) as temporary:
            temporary.write_bytes(b"new")
            assert not target.exists()
            assert temporary.parent == target.parent
        assert target.read_bytes() == b"new"
        assert names_in(tmp_path) == ["overlay.png"]

    def test_parent_folders_are_made(self, tmp_path: Path) -> None:
        with replacing_file(tmp_path / "a" / "b" / "c.json") as temporary:
            temporary.write_text("{}")
        assert (tmp_path / "a" / "b" / "c.json").read_text() == "{}"

    @pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_an_interrupted_block_leaves_the_old_file(self, tmp_path: Path, interruption: BaseException) -> None:
        target = tmp_path / "rpn.json"
        target.write_text("old")
        with pytest.raises(type(interruption)), replacing_file(target) as temporary:
            write_and_raise(temporary, interruption)
        assert target.read_text() == "old"
        assert names_in(tmp_path) == ["rpn.json"]

    def test_a_failed_rename_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, target: Path) -> Path:
            raise OSError(errno.EIO, "Input/output error", str(self), None, str(target))

        monkeypatch.setattr(Path, "replace", refuse)
        with (
            pytest.raises(RunFailed, match=r"writing .*x\.json failed: Input/output error"),
            replacing_file(tmp_path / "x.json") as temporary,
        ):
            temporary.write_text("{}")
        assert names_in(tmp_path) == []

    def test_a_link_keeps_pointing_where_it_did(self, tmp_path: Path) -> None:
        (tmp_path / "real.json").write_text("old")
        (tmp_path / "link.json").symlink_to("real.json")
        with replacing_file(tmp_path / "link.json") as temporary:
            temporary.write_text("new")
        assert (tmp_path / "link.json").is_symlink()
        assert (tmp_path / "real.json").read_text() == "new"

    def test_the_mode_is_kept(self, tmp_path: Path) -> None:
        target = tmp_path / "x"
        target.write_text("old")
        target.chmod(0o640)
        with replacing_file(target) as temporary:
            temporary.write_text("new")
        assert stat.S_IMODE(target.stat().st_mode) == 0o640

    def test_a_read_only_file_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "x"
        target.write_text("old")
        # chmod would not stop root
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(BadInput, match="is read-only"), replacing_file(target):
            pytest.fail("the block must not run")
        assert target.read_text() == "old"

    @pytest.mark.parametrize("target", [Path("/dev/null"), Path()], ids=["device", "folder"])
    def test_only_regular_files_are_replaced(self, target: Path) -> None:
        with pytest.raises(BadInput, match="not a regular file"), replacing_file(target):
            pytest.fail("the block must not run")
        assert target.exists()


@pytest.mark.parametrize("writing", [replacing_file, replacing_directory])
class TestFoldersAbove:
    def test_they_go_where_nothing_came_of_it(
        self, tmp_path: Path, writing: Callable[[Path], AbstractContextManager[Path]]
    ) -> None:
        (tmp_path / "there").mkdir()
        with pytest.raises(KeyError), writing(tmp_path / "there" / "new" / "below" / "x"):
            raise KeyError
        assert names_in(tmp_path) == ["there"]
        assert names_in(tmp_path / "there") == []

    def test_they_stay_where_others_use_them(
        self, tmp_path: Path, writing: Callable[[Path], AbstractContextManager[Path]]
    ) -> None:
        def fail() -> None:
            (tmp_path / "new" / "other").touch()
            raise KeyError

        with pytest.raises(KeyError), writing(tmp_path / "new" / "below" / "x"):
            fail()
        assert names_in(tmp_path / "new") == ["other"]


class TestRequireWritableFile:
    @pytest.mark.parametrize("name", ["new.png", "new folder/below/new.png", "there.png", "link.png"])
    def test_a_place_that_can_be_written_is_left_as_it_was(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "there.png").write_text("old")
        (tmp_path / "link.png").symlink_to("there.png")
        require_writable_file(tmp_path / name)
        assert names_in(tmp_path) == ["link.png", "there.png"]
        assert (tmp_path / "there.png").read_text() == "old"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("folder", "folder is a folder, not a regular file; expected the name of a file to write"),
            ("file/x.png", r"x\.png cannot be written: .*file is a file, expected a folder; name another place"),
            ("x" * 300, r"x cannot be written \(File name too long\); make that place writable, or name another"),
        ],
    )
    def test_a_place_that_cannot(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(BadInput, match=message):
            require_writable_file(tmp_path / name)
        with pytest.raises(BadInput, match=message), replacing_file(tmp_path / name):
            pytest.fail("the block must not run")


class TestRequireWritableFolder:
    @pytest.mark.parametrize("name", ["folder", "new", "folder/new/below", "link"])
    def test_a_folder_is_left_as_it_was(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "link").symlink_to("folder")
        require_writable_folder(tmp_path / name)
        assert names_in(tmp_path) == ["folder", "link"]
        assert names_in(tmp_path / "folder") == []

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("file", "file is a file; expected a folder, or a new name for one"),
            ("file/below", r"below cannot be written: .*file is a file, expected a folder; name another place"),
            ("x" * 300, r"x cannot be written \(File name too long\); make that place writable, or name another"),
        ],
    )
    def test_a_place_that_cannot_be_one(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(BadInput, match=message):
            require_writable_folder(tmp_path / name)


class TestReplacingDirectory:
    def test_the_folder_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "out" / "bundle"
        with replacing_directory(target) as temporary:
            (temporary / "graphs").mkdir()
            (temporary / "graphs" / "trunk.onnx").write_bytes(b"x")
            (temporary / "manifest.json").symlink_to("graphs/trunk.onnx")
            assert not target.exists()
        assert names_in(target) == ["graphs", "manifest.json"]
        assert names_in(tmp_path / "out") == ["bundle"]

    def test_the_folder_has_the_usual_mode(self, tmp_path: Path) -> None:
        (tmp_path / "usual").mkdir()
        with replacing_directory(tmp_path / "bundle"):
            pass
        assert (tmp_path / "bundle").stat().st_mode == (tmp_path / "usual").stat().st_mode

    @pytest.mark.parametrize("interruption", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("old", ["absent", "empty", "filled"])
    def test_an_interrupted_block_leaves_what_was_there(
        self, tmp_path: Path, interruption: BaseException, old: str
    ) -> None:
        target = tmp_path / "bundle"
        if old != "absent":
            target.mkdir()
        if old == "filled":
            (target / "manifest.json").write_text("old")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(type(interruption)), replacing_directory(target, exist_ok=True) as temporary:
            write_and_raise(temporary / "manifest.json", interruption)
        assert sorted(tmp_path.rglob("*")) == before

    def test_an_empty_folder_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        with replacing_directory(tmp_path / "bundle") as temporary:
            (temporary / "a").touch()
        assert names_in(tmp_path / "bundle") == ["a"]
        assert names_in(tmp_path) == ["bundle"]

    def test_a_filled_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "thesis.tex").touch()
        with (
            pytest.raises(BadInput, match="exists and is not empty; remove it"),
            replacing_directory(tmp_path / "bundle"),
        ):
            pytest.fail("the block must not run")
        assert names_in(tmp_path / "bundle") == ["thesis.tex"]

    def test_a_folder_filled_meanwhile_is_refused(self, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "file").touch()
        with pytest.raises(BadInput, match="is not empty"), replacing_directory(target):
            os.renames(tmp_path / "other" / "file", target / "file")
        assert names_in(target) == ["file"]
        assert names_in(tmp_path) == ["bundle"]

    def test_exist_ok_replaces_the_whole_folder(self, tmp_path: Path) -> None:
        target = tmp_path / "bundle"
        target.mkdir()
        (target / "old").touch()
        with replacing_directory(target, exist_ok=True) as temporary:
            (temporary / "new").touch()
            assert names_in(target) == ["old"]
        assert names_in(target) == ["new"]
        assert names_in(tmp_path) == ["bundle"]

    def test_the_old_folder_comes_back_when_the_swap_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = tmp_path / "bundle"
        target.mkdir()
        (target / "old").touch()
        rename = Path.rename

        def fail_to_arrive(self: Path, destination: Path) -> Path:
            if (self / "new").exists():
                raise OSError(errno.EIO, "Input/output error", str(self), None, str(destination))
            return rename(self, destination)

        monkeypatch.setattr(Path, "rename", fail_to_arrive)
        with (
            pytest.raises(RunFailed, match="Input/output error"),
            replacing_directory(target, exist_ok=True) as temporary,
        ):
            (temporary / "new").touch()
        assert names_in(target) == ["old"]
        assert names_in(tmp_path) == ["bundle"]

    @pytest.mark.parametrize(("calls", "left"), [(1, "old"), (2, "new"), (3, "new")])
    def test_an_interruption_of_the_swap_leaves_one_whole_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, left: str
    ) -> None:
        """Right after the old folder was moved aside, after the new one took its place, or before the old one went."""
        target = tmp_path / "bundle"
        target.mkdir()
        (target / "old").touch()
        done: list[object] = []

        def interrupted(work: Callable[..., object]) -> Callable[..., object]:
            def run(*arguments: object, **options: object) -> object:
                done.append(work)
                result = None if work is shutil.rmtree and len(done) == calls else work(*arguments, **options)
                if len(done) == calls:
                    raise KeyboardInterrupt
                return result

            return run

        def replace() -> None:
            with replacing_directory(target, exist_ok=True) as temporary:
                (temporary / "new").touch()
                monkeypatch.setattr(Path, "rename", interrupted(Path.rename))
                monkeypatch.setattr(shutil, "rmtree", interrupted(shutil.rmtree))

        with pytest.raises(KeyboardInterrupt):
            replace()
        assert names_in(target) == [left]
        assert names_in(tmp_path) == ["bundle"]

    def test_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").write_text("x")
        with pytest.raises(BadInput, match="is a file; expected a new or an empty folder"):
            replacing_directory(tmp_path / "bundle", exist_ok=True).__enter__()

    def test_a_file_in_the_way_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(BadInput, match=r"bundle cannot be written: .*file is a file, expected a folder; name"):
            replacing_directory(tmp_path / "file" / "bundle").__enter__()


@pytest.mark.parametrize("replacing", [replacing_file, replacing_directory])
class TestFileSystemErrors:
    @needs_dev_full
    def test_a_full_disk_is_one_clear_line(self, tmp_path: Path, replacing: Replacing) -> None:
        with (
            pytest.raises(RunFailed, match=r"^the disk is full: writing .*target stopped after 0 B; .*$") as caught,
            replacing(tmp_path / "target"),
        ):
            fill_disk()
        assert "\n" not in str(caught.value)
        assert ".partial" not in str(caught.value)
        assert names_in(tmp_path) == []

    def test_a_disk_that_fills_at_the_last_moment(
        self, tmp_path: Path, replacing: Replacing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match="the disk is full"), replacing(tmp_path / "target"):
            pass
        assert names_in(tmp_path) == []

    def test_a_file_system_without_fsync_is_fine(
        self, tmp_path: Path, replacing: Replacing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unsupported(descriptor: int) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

        monkeypatch.setattr(os, "fsync", unsupported)
        with replacing(tmp_path / "target"):
            pass
        assert names_in(tmp_path) == ["target"]

    def test_a_file_too_large_for_the_file_system(self, tmp_path: Path, replacing: Replacing) -> None:
        with pytest.raises(RunFailed, match="does not support files this large"), replacing(tmp_path / "target"):
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        assert names_in(tmp_path) == []

    @pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT])
    def test_a_read_only_place_is_a_bad_request(
        self, tmp_path: Path, replacing: Replacing, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def refuse(self: Path, *args: object, **kwargs: object) -> None:
            raise OSError(code, os.strerror(code), str(self))

        monkeypatch.setattr(Path, "mkdir", refuse)
        monkeypatch.setattr(Path, "touch", refuse)
        with pytest.raises(BadInput, match=r"target cannot be written \(.+\); make that place writable"):
            replacing(tmp_path / "target").__enter__()
        assert names_in(tmp_path) == []

    def test_an_unreadable_input_is_not_blamed_on_the_target(self, tmp_path: Path, replacing: Replacing) -> None:
        with pytest.raises(PermissionError, match="weights"), replacing(tmp_path / "target"):
            raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/weights.bin")
        assert names_in(tmp_path) == []

    def test_our_own_errors_pass_unchanged(self, tmp_path: Path, replacing: Replacing) -> None:
        with pytest.raises(BadInput, match=r"^a reason$"), replacing(tmp_path / "target"):
            raise BadInput("a reason")
        assert names_in(tmp_path) == []


class TestRequireFreeSpace:
    def test_enough(self, tmp_path: Path) -> None:
        require_free_space(tmp_path / "not" / "yet" / "there", 1)

    def test_too_little_says_how_much_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000_000))
        with pytest.raises(
            RunFailed, match=r"needs 13\.5 GB .* 2\.0 GB free: 11\.5 GB are missing; .*; --precision fp16 halves it$"
        ):
            require_free_space(tmp_path / "bundle", 13_500_000_000, advice="--precision fp16 halves it")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (13_476_839_424, "13.5 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert text_from_bytes(size_bytes) == text
