"""Locks on open files. The system releases one when the file is closed, in whatever way its process ends.

Some file systems have none, as some on networks; Windows has others, which are not used.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Locked", "lock_file", "locked_folder"]

# held: until the file is closed; elsewhere: another process has it; none: there are no locks here.
Locked: TypeAlias = Literal["held", "elsewhere", "none"]

# EBADF: NFS, which wants a file that is open for writing; a folder never is.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EBADF)


def lock_file(descriptor: int, *, wait: bool) -> Locked:
    """Lock an open file or folder. Args: wait: until nobody else has it. Raises OSError for what no lock explains."""
    if fcntl is None:
        return "none"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "elsewhere"
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return "none"
        raise
    return "held"


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside the block, waiting for it; no lock where there are none. Writes nothing."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lock_file(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
