"""What the crop's content is worth, by hand."""

from __future__ import annotations

from math import comb

import pytest

from sdrpn.evaluation.causal import CONTROLS, causal_methods, causal_result, exact_mcnemar
from sdrpn.evaluation.charts import draw_causal
from sdrpn.evaluation.look_tables import look_tables
from sdrpn.evaluation.records import Record
from tests.evaluation.test_results import record

# Right answers of eight questions, by method.
SCORES = {
    "plain": (1, 0, 0, 0, 0, 0, 0, 0),
    "sdrpn": (1, 1, 1, 1, 1, 0, 0, 0),
    "crop-lowres": (1, 1, 0, 0, 0, 1, 0, 0),
    "crop-swapped": (0, 0, 0, 0, 0, 0, 0, 0),
    "crop-blank": (1, 0, 0, 0, 0, 0, 0, 0),
    "oracle-crop": (1, 1, 1, 1, 1, 1, 1, 1),
}


def records(*, oracle: bool = True) -> dict[str, list[Record]]:
    return {
        name: [
            record(
                index,
                name,
                float(score),
                roi_tokens=0 if name == "plain" or index == 7 else 16,
                other_score=float(index < 2) if name == "crop-swapped" and index < 7 else None,
            )
            for index, score in enumerate(scores)
        ]
        for name, scores in SCORES.items()
        if oracle or name != "oracle-crop"
    }


def test_tables_and_shares_by_hand() -> None:
    found = causal_result(records())
    assert found is not None
    assert (found.crop, found.questions, found.with_crop, found.gap) == ("sdrpn", 8, 7, 0.875)
    arms = {arm.method: arm for arm in found.arms}
    assert list(arms) == ["plain", "sdrpn", *CONTROLS]
    assert arms["sdrpn"].gap_closed == pytest.approx(4 / 7)
    assert (arms["plain"].gap_closed, arms["crop-blank"].gap_closed) == (0, 0)
    assert arms["crop-swapped"].gap_closed == pytest.approx(-1 / 7)
    assert arms["crop-swapped"].other_accuracy == pytest.approx(2 / 7)
    assert arms["sdrpn"].other_accuracy is None
    tables = {table.control: table for table in found.tables}
    low = tables["crop-lowres"]
    assert (low.both, low.only_true, low.only_control, low.neither) == (2, 3, 1, 2)
    assert (low.difference, low.p_value) == (0.25, 0.625)  # 2 * (1 + 4) / 2**4
    assert low.interval[0] <= 0.25 <= low.interval[1]
    for table in tables.values():
        assert table.both + table.only_true + table.only_control + table.neither == 8


def test_without_true_boxes_there_is_no_gap() -> None:
    found = causal_result(records(oracle=False))
    assert found is not None
    assert (found.gap, found.gap_interval) == (None, None)
    assert {arm.gap_closed for arm in found.arms} == {None}
    draw_causal("tiny", found)
    assert look_tables(found, None)[0].rows[0][3] == "-"


def test_with_a_gate_the_crop_is_the_one_of_always() -> None:
    by_method = records()
    by_method["always"] = by_method.pop("sdrpn")
    found = causal_result(by_method)
    assert found is not None
    assert found.crop == "always"
    assert causal_methods(gate=True, boxes=False) == ("plain", "always", *CONTROLS)


def test_nothing_to_compare() -> None:
    assert causal_result({name: [] for name in SCORES}) is None
    unanswered = {name: [record(0, name, None)] for name in SCORES}
    assert causal_result(unanswered) is None


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (5, 0), (3, 4), (1, 11), (40, 60), (0, 1500)])
def test_the_exact_test_is_a_binomial_one(first: int, second: int) -> None:
    """Against the sum over every outcome that is no more likely, for a fair coin."""
    count = first + second
    chances = [comb(count, number) for number in range(count + 1)]
    expected = sum(chance for chance in chances if chance <= chances[first]) / 2**count
    assert exact_mcnemar(first, second) == pytest.approx(min(1.0, expected))
