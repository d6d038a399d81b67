"""Accuracy over time for every threshold, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sdrpn.evaluation.charts import draw_curve
from sdrpn.evaluation.gate_curve import MOST_THRESHOLDS, curve_methods, gate_curve
from sdrpn.evaluation.look_tables import look_tables
from sdrpn.evaluation.plot import round_steps
from sdrpn.evaluation.records import Record
from tests.evaluation.test_results import record

GATE_S, MAP_S = 0.01, 0.02


def records(one: Any, two: Any, gate: Any = None, confidence: Any = None) -> dict[str, list[Record]]:
    """One look takes 0.1 s, two take 0.3 s and the gate's time."""
    name, count = ("sdrpn" if gate is None else "always"), len(one)
    judged: list[dict[str, Any]] = [
        {
            "gate_score": None if gate is None else gate[index],
            "gate_s": 0.0 if gate is None else GATE_S,
            "confidence": None if confidence is None else confidence[index],
            "map_s": MAP_S,
        }
        for index in range(count)
    ]
    two_s = 0.3 if gate is None else 0.3 + GATE_S
    return {
        "plain": [record(index, "plain", float(one[index]), image_tokens=16) for index in range(count)],
        name: [
            record(index, name, float(two[index]), seconds=two_s, image_tokens=16, roi_tokens=16, **judged[index])
            for index in range(count)
        ],
    }


def test_every_threshold_by_hand() -> None:
    """A second look improves questions 1 and 2, spoils question 3, and changes nothing else."""
    found = gate_curve(records((1, 0, 0, 1), (1, 1, 1, 0), gate=(0.1, 0.9, 0.6, 0.2)), 0.5)
    assert found is not None
    plain, always, oracle = found.fixed
    assert (plain.name, plain.accuracy, plain.tokens) == ("plain", 0.5, 16)
    assert plain.seconds == pytest.approx(0.1)
    assert (always.name, always.accuracy, always.tokens) == ("always", 0.75, 32)
    assert always.seconds == pytest.approx(0.3)  # without the gate, which nobody needs to ask
    assert (oracle.accuracy, oracle.looked_twice) == (1.0, 0.5)
    assert oracle.seconds == pytest.approx(0.2)
    (curve,) = found.curves
    assert (curve.judge, curve.auc) == ("gate", 1.0)
    assert [point.threshold for point in curve.points] == [0.1, 0.2, 0.6, 0.9]
    assert [point.accuracy for point in curve.points] == [0.75, 0.75, 1.0, 0.75]
    assert [point.looked_twice for point in curve.points] == [1.0, 0.75, 0.5, 0.25]
    assert [point.seconds for point in curve.points] == pytest.approx([0.31, 0.26, 0.21, 0.16])
    assert [point.tokens for point in curve.points] == [32, 28, 24, 20]
    assert [point.over_random for point in curve.points] == pytest.approx([0, 0.0625, 0.375, 0.1875])
    # 0.21 s are enough for two looks at 55 % of the questions, 0.31 s for more than all.
    assert curve.points[2].over_random_in_time == pytest.approx(1.0 - (0.45 * 0.5 + 0.55 * 0.75))
    assert curve.points[0].over_random_in_time == pytest.approx(0)
    own = found.own
    assert own is not None
    assert (own.point.accuracy, own.point.threshold, own.over_always) == (1.0, 0.5, 0.25)
    assert own.time_share == pytest.approx(0.21 / 0.3)
    draw_curve("tiny", found)
    (table,) = look_tables(None, found)
    assert [row[0] for row in table.rows] == ["plain", "always", "oracle-gate", "own gate", *["gate"] * 4]


def test_the_map_costs_its_time_only_where_nothing_follows() -> None:
    found = gate_curve(records((0, 0), (1, 0), confidence=(0.8, 0.2)), None)
    assert found is not None
    assert found.own is None
    (curve,) = found.curves
    assert curve.judge == "confidence"
    assert [point.seconds for point in curve.points] == pytest.approx([0.3, (0.3 + 0.1 + MAP_S) / 2])


def test_a_probe_needs_the_map() -> None:
    found = gate_curve(records((0, 0), (1, 0), gate=(0.8, 0.2)), 0.5, probe=True)
    assert found is not None
    (curve,) = found.curves
    assert curve.judge == "probe"
    assert [point.seconds for point in curve.points] == pytest.approx([0.3 + GATE_S, GATE_S + (0.3 + 0.1 + MAP_S) / 2])
    assert found.own is not None
    assert found.own.point.seconds == pytest.approx(curve.points[1].seconds)


def test_a_score_that_says_nothing_is_a_random_gate() -> None:
    rng = np.random.default_rng(0)
    two = rng.random(2000) < 0.5
    found = gate_curve(records(np.zeros(2000), two, gate=rng.random(2000).tolist()), None)
    assert found is not None
    (curve,) = found.curves
    assert curve.auc == pytest.approx(0.5, abs=0.05)
    assert len(curve.points) == MOST_THRESHOLDS
    for point in curve.points:
        assert point.over_random == pytest.approx(0, abs=0.03)
        assert point.over_random_interval is not None
        assert point.over_random_interval[0] < 0.01


def test_questions_that_could_not_be_asked_are_left_out() -> None:
    by_method = records((0, 0), (1, 1), gate=(0.5, 0.5))
    by_method["plain"][1] = record(1, "plain", 0.0, seconds=None, problem="too long")
    found = gate_curve(by_method, None)
    assert found is not None
    assert found.questions == 1
    assert found.curves[0].auc is None  # no question that a second look does not improve
    by_method["plain"][0] = record(0, "plain", 0.0, seconds=None, problem="too long")
    assert gate_curve(by_method, None) is None


def test_what_it_needs() -> None:
    assert curve_methods(gate=True, boxes=True) == ("plain", "always", "sdrpn", "oracle-crop")
    assert curve_methods(gate=False, boxes=False) == ("plain", "sdrpn")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (27.2, 49, [30, 35, 40, 45]),
        (0.11, 0.42, [0.2, 0.3, 0.4]),
    ],
)
def test_round_values_on_an_axis(low: float, high: float, expected: list[float]) -> None:
    assert round_steps(low, high) == expected
    assert round_steps(5, 5) == [5]
