"""Every metric on examples that were worked out by hand."""

from __future__ import annotations

import pytest

from sdrpn.evaluation.scores import (
    anls,
    any_letter,
    containment,
    edit_distance,
    exact_match,
    matching_option,
    relaxed_match,
    yes_no_figures,
    yes_no_match,
)
from sdrpn.evaluation.vqa_accuracy import normalised_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "score"), [("123", 1), (" 1 2 3\n", 1), ("124", 0), ("", 0), ("1234", 0), ("the code is 123", 0)]
)
def test_exact_match(answer: str, score: float) -> None:
    assert exact_match(answer, ["123"]) == score


class TestVqaAccuracy:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("The Cat", "cat"),
            ("two dogs", "2 dogs"),
            ("none", "0"),
            ("1,000", "1000"),
            ("3.5", "3.5"),
            ("U.S.A.", "usa"),
            (".5", ".5"),
            ("dont", "don't"),
            ("couldnt've", "couldn't've"),
            ("joe's", "joe 's"),
            ("somebody'd", "somebodyd"),  # an entry of the official table that is the wrong way round
            ("red/blue", "red blue"),
            ("red /blue", "red blue"),
            ("x-ray (left)", "x ray left"),  # the hyphen has no space beside it, each bracket has
            ("a\nline", "line"),
            ("", ""),
        ],
    )
    def test_normalisation(self, text: str, expected: str) -> None:
        assert normalised_answer(text) == expected

    def test_points_beyond_the_thirty_second_stay(self) -> None:
        """The official code passes a flag, 32, where the count of replacements belongs."""
        assert normalised_answer("." * 40 + "x") == "." * 8 + "x"

    @pytest.mark.parametrize(
        ("agreeing", "expected"),
        [
            (0, 0.0),
            (1, 0.3),  # nine times min(1, 1/3), once, without the one who agrees, 0
            (2, 0.6),  # eight times 2/3, twice 1/3
            (3, 0.9),  # seven times 1, three times 2/3
            (4, 1.0),
            (10, 1.0),
        ],
    )
    def test_ten_people(self, agreeing: int, expected: float) -> None:
        people = ["Stop!"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
        assert vqa_accuracy("stop", people) == pytest.approx(expected)

    def test_nobody_answered(self) -> None:
        assert vqa_accuracy("stop", []) == 0.0


class TestAnls:
    @pytest.mark.parametrize(
        ("first", "second", "distance"),
        [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)],
    )
    def test_distance(self, first: str, second: str, distance: int) -> None:
        assert edit_distance(first, second) == edit_distance(second, first) == distance

    @pytest.mark.parametrize(
        ("answer", "truths", "score"),
        [
            ("Hello", ["hello"], 1.0),
            ("helo", ["hello"], 0.8),  # one of five letters
            ("held", ["hello", "helm"], 0.75),  # the most alike counts
            ("ab", ["abcd"], 0.5),  # at the cut
            ("a", ["abc"], 0.0),  # one third
            ("two  words", ["Two words"], 1.0),
            ("", [""], 1.0),
            ("", ["x"], 0.0),
            ("x", [], 0.0),
            ("ab ", ["xb"], 1 - 1 / 3),  # spaces make no difference, but they count as length
        ],
    )
    def test_similarity(self, answer: str, truths: list[str], score: float) -> None:
        assert anls(answer, truths) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("95", "100", 1),
        ("94.9", "100", 0),
        ("105", "100", 1),
        ("-105", "-100", 1),
        ("5", "-5", 0),
        ("50%", "0.5", 1),
        ("52%", "0.5", 1),
        ("50", "50%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # against 0 only the same text will do
        ("Yes", "yes", 1),
        ("1,000", "1000", 0),  # not a number to the official code
        ("nan", "3", 0),
        ("", "3", 0),
    ],
)
def test_relaxed_match(answer: str, truth: str, score: float) -> None:
    assert relaxed_match(answer, truth) == score


class TestContainment:
    @pytest.mark.parametrize(
        ("answer", "truths", "score"),
        [
            ("The sign says STOP.", ["stop"], 1),
            ("sto p", ["stop"], 0),
            ("nothing", ["stop", "noth"], 1),
            ("ＳＴＯＰ　ｎｏｗ", ["stop now"], 1),
            ("first\nsecond", ["first second"], 1),
            ("", ["a"], 0),
            ("anything", [""], 1),
            ("anything", [], 0),
        ],
    )
    def test_text(self, answer: str, truths: list[str], score: float) -> None:
        assert containment(answer, truths) == score

    @pytest.mark.parametrize(("answer", "score"), [("it is x ^ 2 + Y", 1), ("x^2+y", 0)])
    def test_formulas_mind_case_and_no_spaces(self, answer: str, score: float) -> None:
        assert containment(answer, ["x^2 +\nY"], formula=True) == score


class TestYesNo:
    @pytest.mark.parametrize(("answer", "score"), [(" Yes\n", 1), ("yes.", 0), ("no", 0), ("", 0)])
    def test_match(self, answer: str, score: float) -> None:
        assert yes_no_match(answer, "yes") == score

    def test_figures(self) -> None:
        """Two right, one false alarm, one missed; what is neither yes nor no counts as neither."""
        pairs = [("yes", "yes"), ("Yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"), ("perhaps", "yes")]
        found = yes_no_figures(pairs)
        assert found == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3})

    def test_nothing_to_divide_by(self) -> None:
        assert yes_no_figures([("no", "no")]) == {"precision": 0, "recall": 0, "f1": 0}


class TestLetters:
    @pytest.mark.parametrize(
        ("answer", "letter"),
        [
            ("B", "B"),
            ("b.", "B"),
            ("(C) the red one", "C"),
            ("The answer is D", "D"),
            ("It must be A.", "A"),
            ("I choose C here", "C"),
            ("Because it is red", "B"),  # any answer that begins with one of the letters
            ("I'd go for nothing", "D"),  # the only A to D in it
            ("no idea", None),  # D and A
            ("", None),
        ],
    )
    def test_any_letter(self, answer: str, letter: str | None) -> None:
        assert any_letter(answer) == letter

    OPTIONS = {"A": "red", "B": "Blue", "C": "green", "D": "dark red"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("answer", "letter"),
        [
            ("B", "B"),
            ("(B).", "B"),
            ("The answer is C", "C"),
            ("It is blue", "B"),
            ("dark red", None),  # red as well
            ("A or B", None),
            ("b", None),  # case counts for letters
            ("Z", "Z"),
            ("Cannot determine the answer", "Z"),
            ("yellow", None),
        ],
    )
    def test_matching_option(self, answer: str, letter: str | None) -> None:
        assert matching_option(answer, self.OPTIONS) == letter
