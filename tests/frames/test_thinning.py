"""Which frames are taken."""

from __future__ import annotations

import pytest

from sdrpn.errors import BadInput
from sdrpn.frames.thinning import ReadOptions, Thinning


def taken(options: ReadOptions, times_s: list[float | None]) -> list[int]:
    thinning = Thinning(options)
    return [number for number, time_s in enumerate(times_s) if thinning.takes(time_s)]


def even(fps: float, count: int) -> list[float | None]:
    return [round(number / fps, 3) for number in range(count)]


@pytest.mark.parametrize(
    ("options", "times_s", "expected"),
    [
        (ReadOptions(), even(25, 4), [0, 1, 2, 3]),
        (ReadOptions(every=3), even(25, 8), [0, 3, 6]),
        (ReadOptions(every=2), [None] * 5, [0, 2, 4]),
        (ReadOptions(max_fps=10), even(30, 13), [0, 3, 6, 9, 12]),
        (ReadOptions(max_fps=100), even(25, 4), [0, 1, 2, 3]),
        (ReadOptions(max_fps=1), [None] * 3, [0, 1, 2]),
        (ReadOptions(every=2, max_fps=5), even(30, 20), [0, 6, 12, 18]),
        # 10 of 25 frames per second are wanted: on the beat, not every third one.
        (ReadOptions(max_fps=10), even(25, 25), [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),
        # After a pause it goes on from there, and does not catch up.
        (ReadOptions(max_fps=1), [0.0, 0.5, 10.0, 10.5, 11.0], [0, 2, 4]),
        # The next file of a folder begins at zero.
        (ReadOptions(max_fps=1), [0.0, 5.0, 0.0, 0.5, 1.0], [0, 1, 2, 4]),
    ],
)
def test_taken(options: ReadOptions, times_s: list[float | None], expected: list[int]) -> None:
    assert taken(options, times_s) == expected


def test_the_mean_rate_is_the_one_asked_for() -> None:
    assert len(taken(ReadOptions(max_fps=7), even(30, 3000))) == pytest.approx(700, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0; expected a whole number of at least 1"),
        ({"every": "a"}, "every is 'a'; expected a whole number"),
        ({"every": 1.5}, "every is 1.5; expected a whole number"),
        ({"max_fps": "a"}, "max_fps is 'a'; expected a number above 0"),
        ({"give_up_s": None}, "give_up_s is None; expected a number above 0"),
        ({"drop": "x"}, "drop is 'x'; expected True, False, or None"),
        ({"max_fps": 0}, "max_fps is 0; expected a number above 0"),
        ({"max_fps": float("nan")}, "max_fps is nan"),
        ({"give_up_s": -1}, "give_up_s is -1"),
    ],
)
def test_values_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ReadOptions(**options)  # type: ignore[arg-type]


def test_dropping_is_for_live_sources_unless_it_is_asked_for() -> None:
    assert [ReadOptions(drop).drops(live) for drop in (None, True, False) for live in (False, True)] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
