"""Numbers as people read them."""

from __future__ import annotations

import pytest

from sdrpn.host.sizes import text_from_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (0.75678, "0.757"),
        (-12.34, "-12.3"),
        (999.4, "999"),
        (999.6, "1,000"),
        (1234.5, "1,234"),
        (123_456_789.0, "123,456,789"),
        (0.0000123456, "0.0000123"),
    ],
)
def test_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert text_from_number(value) == text
