"""Dataclasses from JSON: types, places of errors, and files that are none."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sdrpn.errors import BadInput
from sdrpn.host.json_reader import REQUIRED, Misfit, parse_json, read_dataclass, read_small_file, shown


@dataclass(frozen=True)
class Part:
    size: int
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 0:
            raise BadInput(f"size is {self.size}; expected 0 or more")


@dataclass(frozen=True)
class Whole:
    name: str
    kind: Literal["one", "other"]
    parts: Mapping[str, Part]
    dims: tuple[int | str, ...]
    colour: tuple[float, float]
    flag: bool
    extra: Any
    note: str | None = None
    part: Part | None = field(default=None, metadata=REQUIRED)


GOOD: dict[str, Any] = {
    "name": "n",
    "kind": "one",
    "parts": {"a": {"size": 3}, "b": {"size": 4, "share": 2}},
    "dims": [1, "batch"],
    "colour": [0, 0.5],
    "flag": True,
    "extra": {"any": [None]},
    "part": None,
}


def test_what_fits_is_read() -> None:
    read = read_dataclass(Whole, GOOD)
    parts = {"a": Part(3), "b": Part(4, 2.0)}
    assert read == Whole("n", "one", parts, (1, "batch"), (0.0, 0.5), True, {"any": [None]}, None, None)
    assert isinstance(read.parts["b"].share, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "name is 3; expected text"),
        ({"name": "a\0b"}, r'name is "a\\u0000b"; expected text'),
        ({"name": "\ud800"}, r'name is "\\ud800"; expected text'),
        ({"kind": "third"}, 'kind is "third"; expected one or other'),
        ({"kind": ["one"]}, r'kind is \["one"\]; expected one or other'),
        ({"parts": []}, r"parts is \[\]; expected an object"),
        ({"parts": {"a": 1}}, r"parts\.a is 1; expected an object"),
        ({"parts": {"a": {"size": True}}}, r"parts\.a\.size is true; expected a whole number"),
        ({"parts": {"a": {"size": 10**30}}}, r"parts\.a\.size is 10+; expected a whole number"),
        ({"parts": {"a": {"size": -1}}}, r"parts\.a: size is -1; expected 0 or more"),
        ({"parts": {"a": {"size": 1, "weight": 2}}}, r"parts\.a\.weight is unknown; expected size, share"),
        ({"parts": {"a": {}}}, r"parts\.a\.size is missing"),
        (
            {"parts": {"a": {"size": 1, "share": float("inf")}}},
            r"parts\.a\.share is Infinity; expected a finite",
        ),
        ({"dims": [1, None]}, r"dims\[1\] is null; expected a whole number or text"),
        ({"colour": [1]}, r"colour is \[1\]; expected a list of 2"),
        ({"colour": "ab"}, 'colour is "ab"; expected a list'),
        ({"flag": 1}, "flag is 1; expected true or false"),
        ({"note": 5}, "note is 5; expected text"),
        ({"part": {"size": "x"}}, r'part\.size is "x"; expected a whole number'),
        ({"more": 1}, "more is unknown; expected name, kind, parts"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Misfit, match=f"^{message}"):
        read_dataclass(Whole, {**GOOD, **changes})


@pytest.mark.parametrize("name", ["name", "parts", "part"])
def test_what_is_missing(name: str) -> None:
    with pytest.raises(Misfit, match=f"^{name} is missing"):
        read_dataclass(Whole, {key: value for key, value in GOOD.items() if key != name})


@pytest.mark.parametrize("value", [None, 1, "text", [GOOD]])
def test_the_top_is_an_object(value: Any) -> None:
    with pytest.raises(Misfit, match=r"^it is .*; expected an object"):
        read_dataclass(Whole, value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "it is not JSON: "),
        (b"\xff", "it is not JSON: "),
        (b"[NaN]", "it is not JSON: NaN is not a number in JSON"),
        (b"-Infinity", "it is not JSON: -Infinity is not a number"),
        (b"[" * 200_000, "it is nested too deeply"),
    ],
)
def test_what_is_no_json(content: bytes, message: str) -> None:
    with pytest.raises(Misfit, match=message):
        parse_json(content)


def test_files_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD))
    size = path.stat().st_size
    assert read_small_file(path, size) == path.read_bytes()
    with pytest.raises(Misfit, match=f"it has {size} bytes; expected at most {size - 1}"):
        read_small_file(path, size - 1)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_not_opened(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "x")
    with pytest.raises(Misfit, match=r"it is a (pipe|folder), not a regular file"):
        read_small_file(tmp_path / "x")


def test_long_values_are_cut_for_messages() -> None:
    assert shown("x" * 1000) == '"' + "x" * 59 + "..."
    assert shown([1]) == "[1]"
