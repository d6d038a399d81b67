"""JSON and JSON Lines as editors, Windows tools and data sets leave them."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.host.json_files import differing_keys, read_json, read_json_object, read_numbered_objects

ENCODINGS = {
    "plain": (b"", "utf-8"),
    "UTF-8 mark": (codecs.BOM_UTF8, "utf-8"),
    "UTF-16 LE": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "UTF-16 BE": (codecs.BOM_UTF16_BE, "utf-16-be"),
    "UTF-32 LE": (codecs.BOM_UTF32_LE, "utf-32-le"),
}


def values(path: Path) -> list[object]:
    return [value for _, value in read_numbered_objects(path)]


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_marks_and_line_ends(tmp_path: Path, name: str, line_end: str) -> None:
    mark, codec = ENCODINGS[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + line_end.join(['{"a": "\u00e9"}', "", '{"a": 2}', ""]).encode(codec))
    assert values(path) == [{"a": "\u00e9"}, {"a": 2}]
    path.write_bytes(mark + '[1, "\u00e9"]'.encode(codec))
    assert read_json(path) == [1, "\u00e9"]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\x0c"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path, character: str) -> None:
    raw = json.dumps({"a": f"x{character}y"}, ensure_ascii=False)  # of the last three, JSON escapes each
    path = tmp_path / "a.jsonl"
    path.write_text(f"{raw}\n{raw}", "utf-8", newline="")
    assert values(path) == [{"a": f"x{character}y"}] * 2


@pytest.mark.parametrize("indent", [None, 2])
def test_one_list_in_place_of_lines(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=indent), "utf-8")
    assert read_numbered_objects(path) == [(f"{path} entry 1", {"a": 1}), (f"{path} entry 2", {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON .Expecting property name"),
        (b"", "is not JSON .Expecting value"),
        (b"[" * 200_000, "is not JSON .maximum recursion"),
        (b"1" * 5000, "is not JSON .Exceeds the limit"),
        (b"\x80", "is not UTF-8 text"),
        (b"[]", "holds list; expected an object: do it again"),
    ],
    ids=["cut", "empty", "nested", "digits", "binary", "a list"],
)
def test_what_is_no_object_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_json_object(path, "do it again")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="cannot be read"):
        read_json_object(tmp_path, "do it again")


def test_differing_keys() -> None:
    assert differing_keys({"a": 1, "b": None, "c": 3}, {"a": 2, "d": 0}) == ["a", "c", "d"]
