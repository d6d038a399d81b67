"""Run named steps one after the other; a result is the finding of a step, or why it failed or was skipped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sdrpn.errors import SdrpnError
from sdrpn.reports.device_report import CheckResult, Figure, State

__all__ = ["CheckFailed", "Finding", "Skip", "Step", "run_steps"]


class Skip(Exception):
    """The step cannot run on this machine; the text says why."""


class CheckFailed(Exception):
    """The step ran, and its result is wrong."""


@dataclass(frozen=True)
class Finding:
    """The result of a step that passed."""

    detail: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A named step. `run` may raise Skip, CheckFailed, or any other error."""

    name: str
    run: Callable[[], Finding]


def run_steps(
    group: str, steps: Sequence[Step], begin: Callable[[str], None] = lambda name: None
) -> Iterator[CheckResult]:
    """Yield the results in order. `begin` is called with a step's name before it starts."""
    for step in steps:
        begin(step.name)
        start = time.perf_counter()
        state, finding = _outcome(step)
        yield CheckResult(group, step.name, state, finding.detail, time.perf_counter() - start, finding.figures)


def _outcome(step: Step) -> tuple[State, Finding]:
    try:
        return "passed", step.run()
    except Skip as reason:
        return "skipped", Finding(_line(reason))
    except (CheckFailed, SdrpnError) as error:
        return "failed", Finding(_line(error))
    except Exception as error:  # any error of a library is a result
        return "failed", Finding(f"{type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
