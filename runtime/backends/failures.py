"""Errors of the libraries that load, run and save graphs: of this machine, or of the graph. Knows no library."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sdrpn.errors import BadBundle, RunFailed, SdrpnError
from sdrpn.host.sizes import text_from_bytes

__all__ = ["first_line", "graph_error", "not_saved"]

# Messages of failures outside the graph: memory, disk, descriptors, threads.
_OF_THE_MACHINE = re.compile(
    r"bad_alloc|bad allocation|out of memory|failed to allocate|no space left|disk quota|input/output error"
    r"|too many open files|resource temporarily unavailable",
    re.IGNORECASE,
)


def graph_error(reason: str, error: BaseException, *, saved: bool = False) -> SdrpnError:
    """The error for a graph that a library does not load or run, with what to do about it.

    Args:
        reason: what failed, and the library's own words
        error: what the library raised
        saved: the graph is one of `sdrpn optimize`
    Returns: RunFailed where memory, disk or threads are missing, else BadBundle
    """
    if isinstance(error, MemoryError) or _OF_THE_MACHINE.search(str(error)):
        return RunFailed(reason)
    advice = "make the saved graphs again with `sdrpn optimize`, or run without them" if saved else None
    return BadBundle(f"{reason}; {advice or 'export the bundle again'}")


def not_saved(library: str, graph: str, out: Path, reason: str) -> RunFailed:
    """The error for a graph that a library could not write to `out`: libraries do not say that a disk is full."""
    free = text_from_bytes(shutil.disk_usage(out.parent).free)
    return RunFailed(
        f"the {graph} graph was not saved: {library} could not write {out.name} ({reason}); "
        f"its disk has {free} free: free some space and try again"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error that says something: above it, OpenVINO names places in its source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(filter(_tells, lines), (lines or [type(error).__name__])[0])


def _tells(line: str) -> bool:
    return not re.match(r"(Caught exception: )?(Exception from|Check ')|Node \S+ of type \S+$", line)
