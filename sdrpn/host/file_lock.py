"""Locks on open files. The system releases one when the file is closed, in whatever way its process ends.

Some file systems have none, as some on networks; Windows has others, which are not used.
"""

from __future__ import annotations

import errno
from typing import Literal, TypeAlias

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Locked", "lock_file"]

# held: until the file is closed; elsewhere: another process has it; none: there are no locks here.
Locked: TypeAlias = Literal["held", "elsewhere", "none"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)


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
