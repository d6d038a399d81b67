"""Text in pictures is whole and no wider than its room."""

from __future__ import annotations

import pytest

from sdrpn.images.picture_text import font, wrapped


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
