"""Results as text for people: lines and tables, which a terminal prints in its own way. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterable

from sdrpn.reports.table_page import Table

__all__ = ["Part", "Table", "Text", "amount"]

# A line, or a table. The terminal escapes both.
Part = str | Table
Text = Iterable[Part]


def amount(count: int, noun: str) -> str:
    """A number of things whose plural ends in s: "1 layer", "1,200 steps"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
