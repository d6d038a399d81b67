"""From measured runs to figures, and to CSV and a page with charts. Runs nothing.

A figure is (p50, p95, p99) over the counted runs, nearest rank: with ten runs p95 and p99 are the slowest one.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sdrpn.escaping import csv_cell

__all__ = ["BenchReport", "CaseFigures", "Percentiles", "csv_text", "html_text", "percentiles"]


@dataclass(frozen=True)
class Percentiles:
    """Of one quantity over all runs."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class CaseFigures:
    """One case on one side. Stages in seconds."""

    side: str
    case: str
    stages: dict[str, Percentiles]
    prefill_tokens_per_s: float | None  # prompt tokens, those reused included, over the LLM's median prefill
    decode_tokens_per_s: float | None
    answers_per_s: float  # one after the other
    relative_to_plain: float | None  # answers_per_s over those of the same side's plain case
    relative_to_first: float | None  # answers_per_s over those of the first side in the same case


@dataclass(frozen=True)
class BenchReport:
    """All that a run says."""

    machine: dict[str, Any]
    command: str
    runs: int
    cases: tuple[CaseFigures, ...]
    peak_rss_bytes: int | None  # of the process; None where several sides share it
    energy: dict[str, float] = field(default_factory=dict)  # joules of all counted runs and what was sampled


def percentiles(values: Sequence[float]) -> Percentiles:
    """Nearest-rank percentiles of at least one value."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Percentiles(at(0.50), at(0.95), at(0.99))


def csv_text(report: BenchReport) -> str:
    """One line a side, case and stage."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("side", "case", "stage", "p50_s", "p95_s", "p99_s"))
    for found in report.cases:
        for stage, value in found.stages.items():
            writer.writerow((*map(csv_cell, (found.side, found.case, stage)), value.p50, value.p95, value.p99))
    return stream.getvalue()


def html_text(report: BenchReport) -> str:
    """A page of its own: bars by case for the whole answer, stacked by stage, and a table of everything."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    longest_s = max((found.stages["total"].p50 for found in report.cases), default=0.0) or 1.0
    return environment.from_string(_PAGE).render(
        report=report, bars=[(found, _segments(found, longest_s)) for found in report.cases], colours=_COLOURS
    )


_COLOURS = {
    "vision": "#4c78a8",
    "trunk": "#f58518",
    "rpn": "#e45756",
    "crop vision": "#72b7b2",
    "crop trunk": "#eeca3b",
    "tail": "#54a24b",
    "decode and the rest": "#b279a2",
}


def _segments(found: CaseFigures, longest_s: float) -> list[tuple[str, float, float]]:
    """(stage, seconds, per cent of the longest bar)."""
    total_s = found.stages["total"].p50
    known = [(name, found.stages[name].p50) for name in _COLOURS if name in found.stages]
    rest_s = max(0.0, total_s - sum(seconds for _, seconds in known))
    stages = [*known, ("decode and the rest", rest_s)]
    return [(name, seconds, 100 * seconds / longest_s) for name, seconds in stages if seconds > 0]


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>sdrpn bench</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
.bar { display: flex; height: 1.6rem; background: #8882; } .bar span { display: block; }
table { border-collapse: collapse; } td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
td:first-child, td:nth-child(2), th:first-child, th:nth-child(2) { text-align: left; }
.key span { display: inline-block; width: .9rem; height: .9rem; margin: 0 .3rem 0 1rem; vertical-align: -1px; }
</style>
<h1>sdrpn bench</h1>
<p><code>{{ report.command }}</code><br>
{% for name, value in report.machine.items() %}{{ name }}: {{ value }}; {% endfor %}
{{ report.runs }} counted runs
{% if report.peak_rss_bytes %}; peak RSS {{ '%.0f' % (report.peak_rss_bytes / 1e6) }} MB{% endif %}
{% for name, value in report.energy.items() %}; {{ name }} {{ '%.3g' % value }}{% endfor %}</p>
<h2>A whole answer, by stage (medians)</h2>
<p class="key">
{% for name, colour in colours.items() %}<span style="background:{{ colour }}"></span>{{ name }}{% endfor %}</p>
{% for found, segments in bars %}
<div>{{ found.side }}, {{ found.case }}: {{ '%.3f' % found.stages['total'].p50 }} s</div>
<div class="bar">{% for name, seconds, share in segments %}<span title="{{ name }} {{ '%.1f' % (seconds * 1000) }} ms"
 style="width:{{ '%.2f' % share }}%;background:{{ colours[name] }}"></span>{% endfor %}</div>
{% endfor %}
<h2>Throughput</h2>
<table><tr><th>side</th><th>case</th><th>prefill tokens/s</th><th>decode tokens/s</th><th>answers/s</th>
<th>against plain</th><th>against the first side</th></tr>
{% for found in report.cases %}<tr><td>{{ found.side }}</td><td>{{ found.case }}</td>
{% for value in (found.prefill_tokens_per_s, found.decode_tokens_per_s, found.answers_per_s, found.relative_to_plain,
 found.relative_to_first) %}<td>{{ '' if value is none else '%.3g' % value }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Every stage, in milliseconds</h2>
<table><tr><th>side</th><th>case</th><th>stage</th><th>p50</th><th>p95</th><th>p99</th></tr>
{% for found in report.cases %}{% for stage, value in found.stages.items() %}
<tr><td>{{ found.side }}</td><td>{{ found.case }}</td><td>{{ stage }}</td><td>{{ '%.2f' % (value.p50 * 1000) }}</td>
<td>{{ '%.2f' % (value.p95 * 1000) }}</td><td>{{ '%.2f' % (value.p99 * 1000) }}</td></tr>
{% endfor %}{% endfor %}</table>
</html>
"""
