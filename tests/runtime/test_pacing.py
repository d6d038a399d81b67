"""How prefills are divided, on a clock that stands still unless the test moves it."""

from __future__ import annotations

import random

import pytest

from sdrpn.runtime.pacing import LEAST_ROWS, Pace


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("sdrpn.runtime.pacing.time.perf_counter", found)
    return found


class Steps:
    """Others that decode: a step takes 10 ms."""

    def __init__(self, clock: Clock, pace: Pace, most_stall_s: float | None) -> None:
        self.count, self.run, self._clock, self._pace = 0, True, clock, pace
        pace.attend(most_stall_s, lambda: self.run, self.step)

    def step(self) -> None:
        self._clock.now_s += 0.01
        self.count += 1
        self._pace.stepped(0.01)


def ran(clock: Clock, pace: Pace, name: str, rows: int, seconds: float) -> None:
    with pace.measured(name, rows):
        clock.now_s += seconds


def test_nothing_is_divided_without_a_bound(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, None)
    assert (pace.part("trunk", 500), steps.count) == (500, 0)
    assert not pace.is_bound


def test_no_rows_are_no_part(clock: Clock) -> None:
    """A tail whose rows are all there is asked for its last logits."""
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    assert (pace.part("tail", 0), steps.count) == (0, 0)


def test_nothing_is_divided_while_nobody_waits(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    steps.run = False
    assert (pace.part("trunk", 500), steps.count) == (500, 0)


def test_parts_are_as_long_as_the_bound_allows(clock: Clock) -> None:
    """80 of 100 ms are planned for, of which a step takes 10: 64 rows of 1 ms each fit."""
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    ran(clock, pace, "trunk", 512, 0.512)
    steps.step()
    assert pace.part("trunk", 512) == 64
    assert steps.count == 1


def test_a_step_comes_first_where_the_time_is_used_up(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    ran(clock, pace, "trunk", 512, 0.512)
    steps.step()
    clock.now_s += 0.065
    assert pace.part("trunk", 512) == 64
    assert steps.count == 2


def test_a_part_that_fits_into_what_is_left_needs_no_step(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    ran(clock, pace, "trunk", 16, 0.016)
    steps.step()
    clock.now_s += 0.03
    assert pace.part("trunk", 20) == 20
    assert steps.count == 1


def test_parts_are_equally_long(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    ran(clock, pace, "trunk", 64, 0.064)
    steps.step()
    assert pace.part("trunk", 70) == 35


def test_at_least_so_many_rows_are_run_whatever_they_take(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.001)
    ran(clock, pace, "trunk", 16, 5)
    assert pace.part("trunk", 160) == LEAST_ROWS
    assert (pace.part("vision", 2, least=2), steps.count) == (2, 2)


def test_measurements_follow_what_changes(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.1)
    ran(clock, pace, "trunk", 64, 0.064)
    for _ in range(5):
        ran(clock, pace, "trunk", 64, 0.64)
    steps.step()
    assert pace.part("trunk", 64) == LEAST_ROWS


@pytest.mark.parametrize("slow", [1.0, 2.0, 3.0])
def test_the_bound_is_kept_where_parts_do_not_take_equally_long(clock: Clock, slow: float) -> None:
    """On a busy machine some take several times as long as others."""
    pace, chance, waits = Pace(), random.Random(0), list[float]()
    steps = Steps(clock, pace, 0.2)
    last = clock.now_s

    def step() -> None:
        nonlocal last
        steps.step()
        waits.append(clock.now_s - last)
        last = clock.now_s

    pace.attend(0.2, lambda: True, step)
    for _ in range(200):  # prefills
        left = 300
        while left:
            rows = min(left, pace.part("trunk", left))
            ran(clock, pace, "trunk", rows, rows * 0.001 * chance.choice((1.0, slow)))
            left -= rows
    late = sum(wait > 0.2 for wait in waits[10:])
    assert late <= len(waits) * 0.01
    assert max(waits[10:]) < 0.3


def test_those_that_end_in_a_step_free_the_prefill(clock: Clock) -> None:
    pace = Pace()
    steps = Steps(clock, pace, 0.1)

    def last_step() -> None:
        steps.run = False

    pace.attend(0.1, lambda: steps.run, last_step)
    ran(clock, pace, "trunk", 16, 5)
    assert pace.part("trunk", 160) == 160
