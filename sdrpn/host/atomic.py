"""Write files and folders atomically: they appear complete or not at all. Knows nothing about their content.

Data is written under a hidden temporary name beside the target, on the same file system, and one rename at the end
makes it visible. If the work ends early (an error, Ctrl-C, a full disk), the temporary is removed and the target is
unchanged, as are the folders above it. Leftovers of a killed run are removed by the next run for the same target.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdrpn.errors import BadInput, RunFailed, SdrpnError
from sdrpn.host.partial import held, remove_leftovers, remove_partial, temporary_beside
from sdrpn.host.sizes import text_from_bytes

__all__ = [
    "replacing_directory",
    "replacing_file",
    "require_free_space",
    "require_new_directory",
    "require_writable_file",
    "require_writable_folder",
]

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)  # the last by folders such as /proc


@contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes `path` when the block ends without an exception.

    A symbolic link is kept: its destination is replaced. Missing parent folders are created. The mode of a replaced
    file is kept.

    Raises:
        BadInput: the target cannot be written (read-only, a folder, a device)
        RunFailed: the disk is full, or the file system failed
    """
    target, _ = _replaceable_file(path)
    temporary = temporary_beside(target)
    with _left_clean(target, temporary), _errors_named(path, temporary):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        with held(temporary, Path.touch):
            yield temporary
            if target.exists():
                shutil.copymode(target, temporary)
            _sync(temporary)
            temporary.replace(target)
        _sync(target.parent)


def require_writable_file(path: str | Path) -> None:
    """Raise what `replacing_file` would raise for a target that cannot be written, before any other work.

    Leaves no file behind and creates no parent folders.
    """
    target, folder = _replaceable_file(path)
    _require_new_file(path, folder / target.name)


def require_writable_folder(path: str | Path) -> None:
    """Raise BadInput where no file could be written into a folder, which need not exist yet. Leaves nothing behind."""
    try:
        target = Path(path).resolve()
        if target.exists() and not target.is_dir():
            raise BadInput(f"{path} is a file; expected a folder, or a new name for one")
        folder = target if target.exists() else _existing_folder(path, target)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be written ({reason}); make that place writable, or name another") from error
    _require_new_file(path, folder / target.name)


def _require_new_file(path: str | Path, beside: Path) -> None:
    """Make a file beside another place, and remove it; errors name `path`."""
    probe = temporary_beside(beside)
    try:
        with _errors_named(path, probe):
            probe.touch(exist_ok=False)
    finally:
        remove_partial(probe)


def require_new_directory(path: str | Path) -> None:
    """Raise BadInput where `replacing_directory(path)` would refuse: a file, or a folder that is not empty."""
    try:
        target = Path(path).resolve()
        _existing_folder(path, target)
        _require_replaceable(path, target, exist_ok=False)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"{path} cannot be written ({error}); make that place writable, or name another") from error


@contextmanager
def replacing_directory(path: str | Path, *, exist_ok: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; it becomes `path` when the block ends without an exception.

    An empty folder at `path` is always replaced, a non-empty one only with `exist_ok`: the old one is moved aside
    first, and moved back if the new one cannot be moved there.

    Raises:
        BadInput: the target exists and is not empty, is not a folder, or cannot be written
        RunFailed: the disk is full, or the file system failed
    """
    target = Path(path).resolve()
    temporary = temporary_beside(target)
    with _left_clean(target, temporary), _errors_named(path, temporary):
        _existing_folder(path, target)
        _require_replaceable(path, target, exist_ok=exist_ok)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        with held(temporary, Path.mkdir):
            yield temporary
            _sync_tree(temporary)
            _require_replaceable(path, target, exist_ok=exist_ok)
            _swap_in(temporary, target)
        _sync(target.parent)


def require_free_space(path: str | Path, size_bytes: int, *, advice: str = "") -> None:
    """Raise RunFailed when the file system of `path` (which need not exist yet) has less than `size_bytes` free.

    Args:
        path: the target to be written
        size_bytes: the size to be written
        advice: how to need less, e.g. "fp16 needs half of it"
    """
    ancestor = Path(path).resolve()
    while not ancestor.exists():
        ancestor = ancestor.parent
    free_bytes = shutil.disk_usage(ancestor).free
    if free_bytes >= size_bytes:
        return
    message = (
        f"{path} needs {text_from_bytes(size_bytes)} and its disk has {text_from_bytes(free_bytes)} free: "
        f"{text_from_bytes(size_bytes - free_bytes)} are missing; free some space or name another disk"
    )
    raise RunFailed(f"{message}; {advice}" if advice else message)


def _replaceable_file(path: str | Path) -> tuple[Path, Path]:
    """The resolved target and its nearest existing folder. Raises BadInput where no file can be written."""
    try:
        target = Path(path).resolve()
        folder = _existing_folder(path, target)
        if target.is_dir():
            raise BadInput(f"{path} is a folder, not a regular file; expected the name of a file to write")
        if target.exists() and not target.is_file():
            raise BadInput(f"{path} is not a regular file and cannot be replaced by one; name another file")
        if target.exists() and not os.access(target, os.W_OK):
            raise BadInput(f"{path} is read-only; make it writable or name another file")
    except (OSError, RuntimeError) as error:  # a name that is too long, a folder without access, a loop of links
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be written ({reason}); make that place writable, or name another") from error
    return target, folder


def _existing_folder(path: str | Path, target: Path) -> Path:
    """The nearest existing folder above the target. Raises BadInput where one of its parents is a file."""
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise BadInput(f"{path} cannot be written: {folder} is a file, expected a folder; name another place")
    return folder


def _require_replaceable(path: str | Path, target: Path, *, exist_ok: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise BadInput(f"{path} is a file; expected a new or an empty folder: name another one")
    if not exist_ok and any(target.iterdir()):
        raise BadInput(f"{path} exists and is not empty; remove it or name another folder")


def _swap_in(temporary: Path, target: Path) -> None:
    """Move `temporary` to `target`, and delete its old contents."""
    if not target.exists():
        temporary.rename(target)
        return
    old = temporary_beside(target)
    try:
        target.rename(old)
        temporary.rename(target)
        # The new folder is in place: failing to delete the old one is not an error.
        remove_partial(old)
    except BaseException:  # Ctrl-C may also arrive right after a completed rename
        if not target.exists():
            old.rename(target)
        remove_partial(old)
        raise


@contextmanager
def _left_clean(target: Path, temporary: Path) -> Iterator[None]:
    """Remove the temporary in the end; and where `target` is not there, folders above it that were not there before."""
    missing = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        yield
    finally:
        remove_partial(temporary)
        if not target.exists():
            for folder in missing:
                with suppress(OSError):  # another process has begun to use it
                    folder.rmdir()


@contextmanager
def _errors_named(path: str | Path, temporary: Path) -> Iterator[None]:
    """Turn file system errors while writing `path` into one line that names `path`, not the temporary.

    An OSError about another file (an input that cannot be read) is passed through.
    """
    try:
        yield
    except SdrpnError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(f"{_full_disk(path, temporary)}; nothing was left behind") from error
        if error.errno == errno.EFBIG:
            raise RunFailed(
                f"writing {path}: its file system does not support files this large (FAT: at most 4.3 GB); "
                "name a place on another disk"
            ) from error
        if not _concerns(error, temporary):
            raise
        if error.errno in _REFUSED:
            raise BadInput(
                f"{path} cannot be written ({error.strerror}); make that place writable, or name another"
            ) from error
        raise RunFailed(f"writing {path} failed: {error.strerror or error}; nothing was left behind") from error


def _full_disk(path: str | Path, temporary: Path) -> str:
    written = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
    if temporary.is_file():
        written = temporary.stat().st_size
    advice = "free some space or name another disk"
    return f"the disk is full: writing {path} stopped after {text_from_bytes(written)}; {advice}"


def _concerns(error: OSError, temporary: Path) -> bool:
    names = [name for name in (error.filename, error.filename2) if isinstance(name, (str, os.PathLike))]
    places = [Path(name) for name in names]
    return any(place == temporary or temporary in place.parents or place in temporary.parents for place in places)


def _sync(path: Path) -> None:
    """Wait until the bytes (for a folder, the names) are on the disk: otherwise a rename may be written before them."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have no fsync; all other errors count, e.g. a full disk reported late.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            if not (Path(folder) / name).is_symlink():
                _sync(Path(folder) / name)
        _sync(Path(folder))
