"""Extents of dimensions that a name, or a share of it, says."""

from __future__ import annotations

import pytest

from sdrpn.bundle.extents import known_extent


@pytest.mark.parametrize(
    ("dim", "expected"),
    [(3, 3), ("patches", 8), ("patches/4", 2), ("patches/3", 2), ("rows", None), ("rows/4", None), ("patches/0", None)],
)
def test_what_is_known(dim: int | str, expected: int | None) -> None:
    assert known_extent(dim, {"patches": 8}) == expected


def test_a_name_with_a_stroke_of_its_own() -> None:
    assert known_extent("a/b", {"a/b": 5}) == 5
    assert known_extent("a/b", {"a": 5}) is None
