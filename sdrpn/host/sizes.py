"""Format sizes in bytes and other numbers for people."""

from __future__ import annotations

from decimal import Decimal

__all__ = ["text_from_bytes", "text_from_number"]

_UNITS = ("kB", "MB", "GB", "TB")


def text_from_bytes(size_bytes: int) -> str:
    """Decimal units, as disks and model cards are labelled: 999 B, 1.5 kB, 13.5 GB."""
    if abs(size_bytes) < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _UNITS:
        value /= 1000
        # 999.95 would be printed as 1000.0
        if abs(value) < 999.95 or unit == _UNITS[-1]:
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable: the last unit always returns")


def text_from_number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits, no exponent; integer digits are all kept: 1,234, 12.3, 0.0000123."""
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{Decimal(f'{value:.{digits}g}'):,f}"
