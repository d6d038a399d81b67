"""What 8 and 4 bits cost, as a table, and the advice that follows from it."""

from __future__ import annotations

from collections.abc import Iterator

from sdrpn.reports.text import Part, Table
from sdrpn.workflows.quantize import COLUMNS, RoundingCosts, cost_rows

__all__ = ["advice", "costs_text"]


def costs_text(found: RoundingCosts) -> Iterator[Part]:
    """One row per part and way to round it."""
    yield Table(f"{found.questions} questions; 1 is as good as unrounded", COLUMNS, cost_rows(found.costs))


def advice(found: RoundingCosts) -> str:
    """What to keep in fp16, as `sdrpn export` takes it."""
    return f"costly in 4 bits, worth keeping: --keep {','.join(found.worth_keeping) or 'none'}"
