"""Temporary names beside a target that is being written, and leftovers of killed runs under such names.

The writing process holds a lock on the temporary, which the system releases when the process ends in any way. So a
temporary that can be locked is a leftover, and the next run for the same target removes it. Where the file system has
no locks, leftovers are kept.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdrpn.host.file_lock import lock_file

__all__ = ["held", "remove_leftovers", "remove_partial", "temporary_beside"]


def temporary_beside(target: Path) -> Path:
    """A new hidden name in the target's folder."""
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"


@contextmanager
def held(temporary: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """Create a temporary file or folder with `make`, and hold its lock inside the block."""
    make(temporary)
    descriptor = _lock(temporary, wait=True)
    while descriptor is not None and not _is_at(descriptor, temporary):
        # Another run removed it as a leftover between the two calls above.
        os.close(descriptor)
        make(temporary)
        descriptor = _lock(temporary, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(target: Path) -> None:
    """Remove the temporaries of killed runs for this target; those of active runs are kept."""
    for path in _temporaries_of(target):
        descriptor = _lock(path, wait=False)
        if descriptor is not None:
            remove_partial(path)
            os.close(descriptor)


def remove_partial(temporary: Path) -> None:
    """Remove a temporary file or folder, or one that is not needed any more, if it exists; raises nothing.

    So an earlier exception is not hidden. A link goes, and what it leads to stays.
    """
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporaries_of(target: Path) -> list[Path]:
    """Names made by `temporary_beside`; without `glob`, which reads brackets in the target's name as patterns."""
    prefix, suffix = f".{target.name}.", ".partial"
    try:
        names = [path.name for path in target.parent.iterdir()]
    except OSError:
        return []
    found = [name for name in names if name.startswith(prefix) and name.endswith(suffix)]
    return [target.parent / name for name in found if _is_token(name[len(prefix) : -len(suffix)])]


def _is_token(text: str) -> bool:
    return len(text) == 8 and all(character in "0123456789abcdef" for character in text)


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock; None without lock support, or, without `wait`, where another run has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # removed, or a link
        return None
    try:
        held = lock_file(descriptor, wait=wait) == "held"
    except BaseException:
        os.close(descriptor)
        raise
    if not held:
        os.close(descriptor)
    return descriptor if held else None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False
