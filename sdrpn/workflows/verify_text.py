"""A comparison of a bundle with its checkpoint, as a table and lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sdrpn.bundle.tolerances import more_is_better
from sdrpn.reports.text import Part, Table
from sdrpn.workflows.verify import Verification, difference_text, place_text

if TYPE_CHECKING:
    from sdrpn.compare.graphs import Check

__all__ = ["verification_text"]


def verification_text(found: Verification) -> Iterator[Part]:
    """One row per gate; of an exact comparison one per graph and kind of check."""
    return _checks_text(found) if found.exact else _gates_text(found)


def _gates_text(found: Verification) -> Iterator[Part]:
    rows = [
        (variant, gate.graph, gate.kind, "passed" if gate.ok else "FAILED", gate.text, gate.tensor)
        for variant, own in found.gates.items()
        for gate in own
    ]
    yield Table("", ("variant", "graph", "measure", "gate", "worst", "where"), rows)
    for check in found.checks:
        if check.note:
            yield f"{check.variant} {check.graph}, {check.kind}, {check.tensor}: {check.note}"
    yield f"engines: {found.engines}"
    yield f"{sum(row[3] == 'passed' for row in rows)} of {len(rows)} gates passed"


def _checks_text(found: Verification) -> Iterator[Part]:
    """Each row has the first failure, or else the value closest to its limit."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in found.checks:
        groups.setdefault((check.variant, check.graph, check.kind), []).append(check)
    rows = [(*key, *_summary(group)) for key, group in groups.items()]
    yield Table("", ("variant", "graph", "check", "result", ""), rows)
    yield from (f"{place_text(check)}: {check.note}" for check in found.checks if check.note)
    yield f"{sum(check.ok for check in found.checks)} of {len(found.checks)} checks passed"


def _summary(group: list[Check]) -> tuple[str, str]:
    failed = [check for check in group if not check.ok]
    if failed:
        others = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"FAILED {len(failed)} of {len(group)}", f"{failed[0].tensor}: {difference_text(failed[0])}{others}"
    numbers = [check for check in group if isinstance(check.found, float)]
    if not numbers:
        return f"ok {len(group)}", ""
    # The worst difference is the largest, the worst cosine the smallest.
    worst = (min if more_is_better(group[0].kind) else max)(numbers, key=lambda check: check.found)
    return f"ok {len(group)}", f"{worst.tensor}: {difference_text(worst)}"
