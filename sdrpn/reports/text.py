"""Results as text for people: lines and tables, which a terminal prints in its own way. Prints nothing."""

from __future__ import annotations

from collections.abc import Iterable

from sdrpn.reports.table_page import Table

__all__ = ["Part", "Table", "Text"]

# A line, or a table. The terminal escapes both.
Part = str | Table
Text = Iterable[Part]
