"""Words of reports."""

from __future__ import annotations

import pytest

from sdrpn.reports.text import amount


@pytest.mark.parametrize(("count", "expected"), [(0, "0 steps"), (1, "1 step"), (1200, "1,200 steps")])
def test_one_and_many(count: int, expected: str) -> None:
    assert amount(count, "step") == expected
