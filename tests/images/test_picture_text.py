"""Text in pictures is whole, or says that it is not, and is no wider than its room."""

from __future__ import annotations

import pytest

from sdrpn.images.picture_text import fitted_line, font, wrapped


@pytest.mark.parametrize(
    "text", ["", "one", "two  words\nand more", "x" * 300, "short " + "y" * 90 + " end", "a " * 200]
)
@pytest.mark.parametrize("width_px", [1, 60, 400])
def test_nothing_is_lost_and_nothing_is_too_wide(text: str, width_px: int) -> None:
    shown = font(15)
    lines = wrapped(text, shown, width_px)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(len(line) == 1 or shown.getlength(line) <= width_px for line in lines if line)
    assert all(lines) or lines == [""]


def test_lines_break_between_words() -> None:
    shown = font(15)
    assert wrapped("alpha beta gamma", shown, round(shown.getlength("alpha beta")) + 1) == ["alpha beta", "gamma"]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (30, "where is it ?  [1 region]"),
        (25, "where is it ?  [1 region]"),
        (20, "where i…  [1 region]"),
        (14, "w…  [1 region]"),
        (13, "[1 region]"),
        (5, "[1 r…"),
        (0, ""),
    ],
)
def test_a_line_that_does_not_fit(length: int, expected: str) -> None:
    assert fitted_line("where is it ?", "  [1 region]", lambda line: len(line) <= length) == expected
