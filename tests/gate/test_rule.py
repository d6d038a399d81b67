"""Which answers agree, and what the answers of ascending views say."""

from __future__ import annotations

import pytest

from sdrpn.errors import BadInput
from sdrpn.gate.rule import GateRule, agrees, judge


@pytest.mark.parametrize(
    ("agreement", "answer", "target", "expected"),
    [
        ("text", "The STOP sign.", "stop", True),
        ("text", "stop", "a stop sign", True),
        ("text", "go", "stop", False),
        ("text", "", "stop", False),
        ("text", "...", "stop", False),
        ("exact", "4 1 7", "417", True),
        ("exact", "417 m", "417", False),
        ("number", "103", "100", True),
        ("number", "106", "100", False),
        ("letter", "(B) the second", "B", True),
        ("letter", "C", "B", False),
    ],
)
def test_agreement(agreement: str, answer: str, target: str, expected: bool) -> None:
    assert agrees(answer, target, agreement) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "truth", "right", "case"),
    [
        (("a", "a", "a", "a"), "a", (True, True, True, True), "enough"),
        (("x", "a", "a", "a"), "a", (False, True, True, True), "again"),
        (("x", "y", "a", "a"), "a", (False, False, True, True), "again"),
        (("a", "x", "a", "a"), "a", (True, False, True, True), "not ascending"),
        (("a", "a", "x", "a"), "a", (True, True, False, True), "unsettled"),
        (("a", "a", "x", "x"), "a", (True, True, False, False), "unsettled"),
        (("a", "a", "a", ""), "a", (True, True, True, False), "no answer"),
    ],
)
def test_the_reference_s_rule(answers: tuple[str, ...], truth: str, right: tuple[bool, ...], case: str) -> None:
    found = judge(answers, truth, GateRule())
    assert (found.right, found.case) == (right, case)


def test_the_best_views_have_to_agree_with_each_other() -> None:
    # Both contain the truth, and neither contains the other.
    found = judge(("x", "the red sign", "a red car"), "red", GateRule())
    assert found.case == "unsettled"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(("a", "a"), "enough"), (("x", "a"), "again"), (("", "a"), "again"), (("a", ""), "no answer")],
)
def test_of_one_look_and_two_the_second_settles(answers: tuple[str, str], expected: str) -> None:
    assert judge(answers, None, GateRule("exact", "highest", settling=1)).case == expected


def test_by_the_best_view_a_common_error_is_enough() -> None:
    assert judge(("x", "x"), "a", GateRule("exact", "highest", settling=1)).case == "enough"
    assert judge(("x", "x"), "a", GateRule("exact", "truth", settling=1)).case == "unsettled"


def test_where_the_right_answers_begin() -> None:
    assert judge(("x", "y", "a", "a"), "a", GateRule()).first_right == 2
    assert judge(("x", "x", "x"), "a", GateRule()).first_right == 3


def test_what_cannot_be_judged() -> None:
    with pytest.raises(BadInput, match="2 views are too few; expected more than the 2 that settle"):
        judge(("a", "a"), "a", GateRule())
    with pytest.raises(BadInput, match="has no true answer; agree with the highest view"):
        judge(("a", "a"), None, GateRule(settling=1))
    with pytest.raises(BadInput, match="agreement is 'close'; expected text or exact or number or letter"):
        GateRule("close")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="settling is 0"):
        GateRule(settling=0)
