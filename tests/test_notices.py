"""Licences of what is compiled into the native modules."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What a licence asks to be passed on, word for word.
NOTICES = {
    "nanobind": (
        "Copyright (c) 2022 Wenzel Jakob",
        "Redistributions in binary form must reproduce the above copyright",
    ),
    "robin-map": ("MIT License", "Copyright (c) 2017 Thibaut Goetghebuer-Planchon"),
    "libjpeg-turbo": (
        "This software is based in part on the work of the Independent JPEG Group.",
        "Thomas G. Lane, Guido Vollbeding",
        "D. R. Commander",
        "Redistributions in binary form must reproduce the above copyright notice",
        "3. This notice may not be removed or altered from any source distribution.",
    ),
}


@pytest.mark.parametrize("name", NOTICES)
def test_notices(name: str) -> None:
    text = (ROOT / "licenses" / f"{name}.txt").read_text(encoding="utf-8")
    assert [line for line in NOTICES[name] if line not in text] == []


def test_the_notice_of_nanobind_is_its_own() -> None:
    try:
        found = [path for path in distribution("nanobind").files or () if path.name == "LICENSE"]
    except PackageNotFoundError:
        pytest.skip("nanobind is not installed: nothing to compare with")
    (theirs,) = found
    assert theirs.read_text() == (ROOT / "licenses" / "nanobind.txt").read_text(encoding="utf-8")


def test_there_is_no_notice_without_a_part() -> None:
    assert {path.stem for path in (ROOT / "licenses").glob("*.txt")} == set(NOTICES)
