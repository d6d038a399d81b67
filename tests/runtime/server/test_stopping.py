"""Texts that end an answer, in pieces of every size."""

from __future__ import annotations

import pytest

from sdrpn.runtime.server.stopping import TextCutter


def cut(text: str, stops: list[str], size: int) -> tuple[str, bool]:
    cutter = TextCutter(stops)
    pieces = [cutter.push(text[start : start + size]) for start in range(0, len(text), size)]
    return "".join(pieces) + cutter.finish(), cutter.found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "stops", "expected", "found"),
    [
        ("a b c", ["x"], "a b c", False),
        ("a b c", ["b"], "a ", True),
        ("aab", ["ab"], "a", True),
        ("ababac", ["abac"], "ab", True),
        ("one two three", ["three", "two"], "one ", True),
        ("end STO", ["STOP"], "end STO", False),
        ("STOP", ["STOP"], "", True),
        ("", ["STOP"], "", False),
    ],
)
def test_the_text_before_the_first_one(text: str, stops: list[str], expected: str, found: bool, size: int) -> None:
    assert cut(text, stops, size) == (expected, found)


def test_what_cannot_become_one_is_passed_on_at_once() -> None:
    cutter = TextCutter(["STOP"])
    assert cutter.push("a S") == "a "
    assert cutter.push("o") == "So"
