"""Locks on open files: held, held by another, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from sdrpn.host import file_lock
from sdrpn.host.file_lock import lock_file, locked_folder
from sdrpn.host.shared_run import run_lock
from sdrpn.release.store import ReleaseStore


def failing(number: int) -> object:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, "flock")

    return flock


def test_one_has_it_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("w") as second:
        with path.open("w") as first:
            assert lock_file(first.fileno(), wait=False) == "held"
            assert lock_file(second.fileno(), wait=False) == "elsewhere"
        assert lock_file(second.fileno(), wait=True) == "held"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with (tmp_path / "file").open("w") as stream:
        assert lock_file(stream.fileno(), wait=True) == "none"
    with run_lock(tmp_path), ReleaseStore(tmp_path)._locked(".lock", wait=False), locked_folder(tmp_path):
        pass


def test_a_folder_is_locked_without_a_file(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        descriptor = os.open(tmp_path, os.O_RDONLY)
        assert lock_file(descriptor, wait=False) == "elsewhere"
        assert list(tmp_path.iterdir()) == []
    assert lock_file(descriptor, wait=False) == "held"
    os.close(descriptor)


def test_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "fcntl", None)
    with (tmp_path / "file").open("w") as stream:
        assert lock_file(stream.fileno(), wait=False) == "none"
    with locked_folder(tmp_path):
        pass


def test_another_fault_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with (tmp_path / "file").open("w") as stream, pytest.raises(OSError, match="flock"):
        lock_file(stream.fileno(), wait=False)
