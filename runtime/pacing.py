"""How many rows of a prefill are computed before those that decode get their next step. Knows no graph and no sequence.

A part of a prefill takes about as long as earlier parts of its size took, and the more these differed, the longer it
may take. So its rows are chosen such that the part and the decode step after it stay within the bound; a run that
cannot be divided, such as a picture, may still exceed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Pace"]

LEAST_ROWS = 16  # smaller parts cost as much: reading the weights dominates
_UNMEASURED_ROWS = 64  # of a graph that did not run yet
_NEW_SHARE = 0.5  # of the newest measurement in the average
_NEW_DEVIATION_SHARE = 0.25  # this, and how much is added, as RFC 6298 plans for the time of a network
_DEVIATIONS = 2.0
_RESERVE = 0.8  # share of the bound that is planned for: parts do not take equally long


@dataclass
class _Duration:
    """How long something took, and how much that differed."""

    average_s: float | None = None
    deviation_s: float = 0.0

    @property
    def planned_s(self) -> float:
        """It should rarely take longer; 0: it was not measured yet."""
        return 0.0 if self.average_s is None else self.average_s + _DEVIATIONS * self.deviation_s

    def add(self, seconds: float) -> None:
        """It took so long once more."""
        if self.average_s is None:
            self.average_s = seconds
        error_s = seconds - self.average_s
        self.deviation_s += _NEW_DEVIATION_SHARE * (abs(error_s) - self.deviation_s)
        self.average_s += _NEW_SHARE * error_s


class Pace:
    """Divides prefills while other sequences decode. Without a bound nothing is divided."""

    def __init__(self) -> None:
        self._most_s: float | None = None
        self._runs: Callable[[], bool] = lambda: False
        self._step: Callable[[], None] = lambda: None
        self._last = time.perf_counter()  # when the last decode step ended
        self._step_time = _Duration()
        self._times: dict[str, dict[int, _Duration]] = {}  # of parts, by graph and rows rounded up to a power of two

    def attend(self, most_stall_s: float | None, runs: Callable[[], bool], step: Callable[[], None]) -> None:
        """Args:
        most_stall_s: longest time between two decode steps; None: any
        runs: whether sequences wait for a decode step
        step: computes one
        """
        self._most_s, self._runs, self._step = most_stall_s, runs, step

    @property
    def is_bound(self) -> bool:
        """Whether prefills are divided: somebody waits, and the time is limited."""
        return self._most_s is not None and self._runs()

    def stepped(self, seconds: float) -> None:
        """A decode step ended that took so long."""
        self._last = time.perf_counter()
        self._step_time.add(seconds)

    def part(self, name: str, wanted: int, least: int = LEAST_ROWS) -> int:
        """How many of the `wanted` rows of a graph may run now, at least `least`; a decode step may run before.

        Raises: what `step` raises
        """
        if self._most_s is None or not wanted or not self._runs():
            return wanted
        budget_s = self._most_s * _RESERVE - self._step_time.planned_s
        fitting = self._fitting(name, wanted, budget_s - (time.perf_counter() - self._last))
        if fitting < min(wanted, least):
            self._step()
            if not self._runs():
                return wanted
            fitting = self._fitting(name, wanted, budget_s)
        count = -(-wanted // max(fitting, least))
        return -(-wanted // count)  # parts of equal length

    @contextmanager
    def measured(self, name: str, rows: int) -> Iterator[None]:
        """The block computes so many rows."""
        start = time.perf_counter()
        yield
        times = self._times.setdefault(name, {})
        times.setdefault(_rounded(rows), _Duration()).add(time.perf_counter() - start)

    def _fitting(self, name: str, wanted: int, seconds: float) -> int:
        """The most rows, `wanted` divided by a power of two, that should take at most so long; 0: none."""
        rows = wanted
        while rows and self._expected_s(name, rows) > seconds:
            rows //= 2
        return rows

    def _expected_s(self, name: str, rows: int) -> float:
        known = self._times.get(name)
        if not known:
            return 0.0 if rows <= _UNMEASURED_ROWS else float("inf")
        size = _rounded(rows)
        nearest = min(known, key=lambda other: (max(size, other) / min(size, other), other))
        return known[nearest].planned_s * size / nearest


def _rounded(rows: int) -> int:
    return 1 << max(0, rows - 1).bit_length()
