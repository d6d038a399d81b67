"""Untrusted text is never interpreted by what shows it."""

from __future__ import annotations

import json

import pytest

from sdrpn.host.escaping import csv_cell, json_text, markdown_cell, one_line, terminal_text
from sdrpn.host.suggestion import did_you_mean

OBEYED = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F))]
OBEYED += [chr(code) for code in range(0x2066, 0x206A)]


@pytest.mark.parametrize("character", OBEYED, ids=lambda character: f"{ord(character):04x}")
def test_no_control_character_passes(character: str) -> None:
    assert character in "\n\t" or character not in terminal_text(f"a{character}b")
    assert character not in one_line(f"a{character}b")
    assert character not in markdown_cell(f"a{character}b")
    assert character not in csv_cell(f"a{character}b")
    document = json.dumps({f"a{character}b": character}, ensure_ascii=False, indent=1)
    assert json.loads(json_text(document)) == json.loads(document)
    assert character in "\n" or character not in json_text(document)


@pytest.mark.parametrize("text", ["Straße", "图片", "👩‍👩‍👧", "a\tb\nc", "עברית", "x = 1 + 2"])
def test_scripts_and_layout_stay(text: str) -> None:
    assert terminal_text(text) == text


@pytest.mark.parametrize("cell", ["=1+1", "+cmd", "-a", "@sum", "\t=1", "\r=1", " =1", "|x", "-1-1", "=a|'b'!A0"])
def test_a_spreadsheet_computes_nothing(cell: str) -> None:
    assert csv_cell(cell).startswith("'")


@pytest.mark.parametrize("cell", ["1.5", "-1.5e-3", "+2", "bundle", "a=b", ""])
def test_ordinary_cells_stay(cell: str) -> None:
    assert csv_cell(cell) == cell


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>", "&lt;script&gt;"),
        ("a|b", "a\\|b"),
        ("g\n# broken | row", "g # broken \\| row"),
        ("[x](javascript:1)", "\\[x\\](javascript:1)"),
        ("*b* _i_ `c` ~~d~~", "\\*b\\* \\_i\\_ \\`c\\` \\~\\~d\\~\\~"),
        ("a_b.c-d", "a_b.c-d"),
        ("back\\slash", "back\\\\slash"),
        ("a & b", "a &amp; b"),
    ],
)
def test_markdown_sees_no_markup(text: str, shown: str) -> None:
    assert markdown_cell(text) == shown


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("thor", ""),
        ("jetson-tor", "; did you mean jetson-thor?"),
        ("RTX-4090", "; did you mean rtx-4090?"),
        ("zzz", ""),
    ],
)
def test_suggestions(word: str, hint: str) -> None:
    assert did_you_mean(word, ["jetson-thor", "rtx-4090", "h100"]) == hint
