"""A step that fails ends no other, and every end is a result."""

from __future__ import annotations

import pytest

from sdrpn.errors import RunFailed
from sdrpn.runtime.checkup.steps import CheckFailed, Finding, Skip, Step, run_steps


def raising(error: BaseException) -> Step:
    def run() -> Finding:
        raise error

    return Step(type(error).__name__, run)


def test_every_end_is_a_result() -> None:
    steps = [
        Step("good", lambda: Finding("as it should be", {"seconds": 1.5})),
        raising(Skip("not\nhere")),
        raising(CheckFailed("3 of 4 are wrong")),
        raising(RunFailed("cudaMalloc failed")),
        raising(ZeroDivisionError("division by zero")),
        Step("last", lambda: Finding("still run")),
    ]
    begun: list[str] = []
    results = list(run_steps("group", steps, begun.append))
    assert [(result.state, result.detail) for result in results] == [
        ("passed", "as it should be"),
        ("skipped", "not here"),
        ("failed", "3 of 4 are wrong"),
        ("failed", "cudaMalloc failed"),
        ("failed", "ZeroDivisionError: division by zero"),
        ("passed", "still run"),
    ]
    assert begun == [step.name for step in steps]
    assert results[0].figures == {"seconds": 1.5}
    assert results[0].title == "group: good"
    assert all(result.seconds >= 0 for result in results)


def test_ctrl_c_is_no_result() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_steps("group", [raising(KeyboardInterrupt())]))
