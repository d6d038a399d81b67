"""Give memory back to the system that a library has freed or has read from files. Elsewhere than on Linux: nothing."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["drop_file_pages", "trim_heap"]

_DONTNEED = 4  # MADV_DONTNEED of Linux: pages of an unchanged file mapping are read again when they are needed
_MAPS = Path("/proc/self/maps")


def trim_heap() -> None:
    """Return freed memory of the C library's heap, which it keeps otherwise: hundreds of MB after packing weights."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def drop_file_pages(files: Iterable[Path]) -> int:
    """Drop the pages of read-only mappings of these files from this process; how many bytes were mapped."""
    advise = _function("madvise")
    wanted = {os.path.realpath(file) for file in files}
    if advise is None or not wanted or not _MAPS.exists():
        return 0
    dropped = 0
    for line in _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        span, rights, _, _, _, *name = line.split(maxsplit=5)
        if not name or name[0] not in wanted or "w" in rights:
            continue
        start, end = (int(number, 16) for number in span.split("-"))
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)
        dropped += end - start
    return dropped


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    """A function of the GNU C library; None where there is another one, or none."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name, None)
    except OSError:
        return None
