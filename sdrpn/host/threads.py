"""How many threads to compute with on the CPU: one per free core, and a single one for small models.

A thread that waits for a core delays all others of its step, since they meet after every matrix. On a machine that
others use as well, a thread per core is therefore slower than a thread per free core.
"""

from __future__ import annotations

import functools
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sdrpn.errors import BadInput

__all__ = [
    "MOST_THREADS",
    "SMALL_MATRIX",
    "CpuThreads",
    "choose_threads",
    "free_cores",
    "require_threads",
    "usable_cores",
]

# Each thread takes memory in every graph. On two cores, an answer took half a minute with 256 threads, over a minute
# with 1024.
MOST_THREADS = 256
# Weights of the largest matrix of a layer below which splitting it gains less than it risks. On two idle cores, two
# threads answered 1.2 times as fast as one at 0.07 million, 1.6 times at 0.7 million; on two busy cores 0.6 times.
SMALL_MATRIX = 250_000
# The kernel counts time per core in hundredths of a second: over a shorter interval, a core is either busy or free.
_INTERVAL_S = 0.1
# How much of a core's time other processes may take while it still counts as free.
_TOLERATED = 0.25


@dataclass(frozen=True)
class CpuThreads:
    """How many threads, and whether they may wait for work in a busy loop, which costs others the core's time."""

    count: int
    spinning: bool


def require_threads(wished: object) -> None:
    """Raises BadInput for a number of threads that cannot be; None: it is chosen."""
    if wished is not None and not (
        isinstance(wished, int) and not isinstance(wished, bool) and 1 <= wished <= MOST_THREADS
    ):
        raise BadInput(
            f"threads is {wished!r}; expected 1 to {MOST_THREADS}, or none for one per free core", options=("threads",)
        )


def choose_threads(wished: int | None, largest_matrix: int | None = None) -> CpuThreads:
    """The threads for a model.

    Args:
        wished: how many the user asks for; None: one per core that is free when this process first asks, at most
            OMP_NUM_THREADS where it is set; a small model gets one
        largest_matrix: weights of the largest matrix in a layer of the LLM; None: unknown, or every product has so
            many rows that splitting it gains with any matrix
    Raises: BadInput where `wished` is not 1 to 256
    """
    require_threads(wished)
    small = largest_matrix is not None and largest_matrix < SMALL_MATRIX
    if wished == 1 or (wished is None and (small or usable_cores() == 1)):
        return CpuThreads(1, spinning=False)
    free = free_cores()
    count = wished or max(1, min(math.floor(free + _TOLERATED), _most_by_environment()))
    return CpuThreads(count, spinning=free + _TOLERATED >= count)


def usable_cores(root: Path = Path("/")) -> int:
    """The number of cores that this process may use, which in a container may be fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota(root))))


@functools.cache
def free_cores() -> float:
    """How many of the usable cores no other process uses, measured once per process: it takes 0.1 s.

    Where the system does not say, all of them.
    """
    before, own_before = _idle_s(), time.process_time()
    start = time.perf_counter()
    time.sleep(_INTERVAL_S)
    after, own = _idle_s(), time.process_time() - own_before
    if before is None or after is None:
        return float(usable_cores())
    return min(usable_cores(), (after - before + own) / (time.perf_counter() - start))


def _idle_s(root: Path = Path("/")) -> float | None:
    """Seconds that the cores this process may use have been idle since the machine was started; None: unknown."""
    try:
        lines = (root / "proc/stat").read_text().splitlines()
        allowed = os.sched_getaffinity(0)
        ticks_per_s = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    idle = 0
    for line in lines:
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in allowed:
            idle += int(ticks[3]) + int(ticks[4])  # idle, and waiting for a disk
    return idle / ticks_per_s


def _quota(root: Path) -> float:
    """Cores that a container's control group may use; infinite where it has no limit."""
    try:
        limit, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or the limit is "max"
        return math.inf


def _most_by_environment() -> int:
    """OMP_NUM_THREADS, which users and job schedulers set; MOST_THREADS where it is not a number."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else MOST_THREADS
