"""Turn measured runs into figures, CSV and a page with charts. Runs nothing.

A figure is (p50, p95, p99) over the counted runs, by nearest rank: with ten runs p95 and p99 are the slowest run.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sdrpn.host.escaping import csv_cell
from sdrpn.host.sizes import text_from_bytes, text_from_number

__all__ = [
    "STAGES",
    "BenchReport",
    "CaseFigures",
    "Percentiles",
    "csv_text",
    "html_text",
    "percentiles",
    "stages_of_median",
]


UNTIMED = ""  # the part of an answer outside the timed stages


@dataclass(frozen=True)
class Stage:
    """A part of an answer; stages do not overlap."""

    colour: str
    about: str


# In order of execution.
STAGES = {
    "picture preparation": Stage("#d37295", "decode the picture, pad, resize and normalise it"),
    "vision": Stage("#4c78a8", "the vision encoder over the whole picture"),
    "trunk": Stage("#f58518", "the lower layers of the language model over the prompt"),
    "gate": Stage("#ff7f0e", "the gate, which says whether to look again"),
    "rpn": Stage("#e45756", "the region proposal network"),
    "crop choice": Stage("#8c564b", "choose crops from the RoI map"),
    "crop preparation": Stage("#ff9da6", "cut the crops from the picture, resize and normalise them"),
    "crop vision": Stage("#72b7b2", "the vision encoder over the crops"),
    "crop trunk": Stage("#eeca3b", "the lower layers over the crops' tokens and the question"),
    "tail": Stage("#54a24b", "the upper layers, up to the first token"),
    "decode": Stage("#b279a2", "all further tokens, one by one"),
    "rest": Stage("#79706e", "sampling, detokenisation, and the time between stages"),
    UNTIMED: Stage("#bab0ac", "not timed separately"),
}


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of one quantity over all runs."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class CaseFigures:
    """One case on one side, in seconds.

    stages: those of `STAGES` that were timed separately, the total, and common sums. Percentiles of stages do not add
    up; the stages in `median_answer_s` do: they are those of the answer whose total is the median.
    """

    side: str
    case: str
    stages: dict[str, Percentiles]
    prefill_tokens_per_s: float | None  # prompt tokens, including reused ones, over the LLM's median prefill
    decode_tokens_per_s: float | None
    answers_per_s: float  # sequentially
    relative_to_plain: float | None  # answers_per_s over those of the same side's plain case
    relative_to_first: float | None  # answers_per_s over those of the first side in the same case
    median_answer_s: dict[str, float] = field(default_factory=dict)  # by stage; "" is the part outside timed stages
    token_bytes: int | None = None  # that a decode step reads at least: weights, and caches of the context; of a CPU
    bandwidth_share: float | None = None  # token_bytes over the median step, over the machine's measured bandwidth
    prefill_flops_per_s: float | None = None  # of the case plain: multiplications and additions of trunk and tail


@dataclass(frozen=True)
class BenchReport:
    """The figures of a whole run."""

    machine: dict[str, Any]
    command: str
    runs: int
    cases: tuple[CaseFigures, ...]
    peak_rss_bytes: int | None  # of the process; None where several sides share it
    energy: dict[str, float] = field(default_factory=dict)  # joules of all counted runs, and the sampled quantities
    bandwidth_bytes_per_s: float | None = None  # that as many threads read from memory


def percentiles(values: Sequence[float]) -> Percentiles:
    """Nearest-rank percentiles of at least one value."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Percentiles(at(0.50), at(0.95), at(0.99))


def stages_of_median(answers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The stages of the answer whose total is the median, by nearest rank; they add up to its total."""
    ordered = sorted(answers, key=lambda stages: stages["total"])
    median = ordered[math.ceil(0.5 * len(ordered)) - 1]
    timed = {name: median[name] for name in STAGES if name in median}
    untimed_s = median["total"] - sum(timed.values())
    # Rounding errors of the timers do not count.
    return timed if timed and untimed_s <= 1e-6 * median["total"] else {**timed, UNTIMED: untimed_s}


def csv_text(report: BenchReport) -> str:
    """One line per side, case and stage, in seconds to the nanosecond."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("side", "case", "stage", "p50_s", "p95_s", "p99_s"))
    for found in report.cases:
        for stage, value in found.stages.items():
            seconds = (f"{percentile:.9f}" for percentile in (value.p50, value.p95, value.p99))
            writer.writerow((*map(csv_cell, (found.side, found.case, stage)), *seconds))
    return stream.getvalue()


def html_text(report: BenchReport) -> str:
    """A self-contained page: a bar per case, stacked by stage, an explanation of terms, and a table of all figures."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, milliseconds=_milliseconds, size=text_from_bytes)
    shown = {name for found in report.cases for name in found.median_answer_s}
    return environment.from_string(_PAGE).render(
        report=report,
        bars=[_Bar(found, _segments(found, _longest_s(report))) for found in report.cases],
        key=[(name, stage) for name, stage in STAGES.items() if name in shown],
        cases={name: about for name, about in _CASES.items() if any(found.case == name for found in report.cases)},
        sums=_SUMS,
    )


_CASES = {
    "plain": "one pass, no RPN",
    "gate-skips": "the gate runs and says that the first look is enough",
    "no-box": "the RPN runs and proposes no crop",
    "one-box": "a second pass with one crop, all of its tokens",
    "mask": "a second pass with one crop, a fifth of its tokens",
    "two-box": "a second pass with two crops",
    "second-question": "another question about the same picture, whose prefix is reused; no crop",
}
# Entries of CaseFigures.stages that overlap with others.
_SUMS = {
    "LLM prefill": "trunk, gate, rpn, crop trunk and tail",
    "first token": "from the question to the first token: all but decode",
    "token": "the median step of decode",
    "total": "the whole answer",
}
_NARROW = 5  # per cent: narrower segments show no figure


@dataclass(frozen=True)
class _Segment:
    """One stage of a bar. width: per cent of the longest bar."""

    name: str
    colour: str
    seconds: float
    width: float

    @property
    def title(self) -> str:
        """The tooltip."""
        return f"{self.name or STAGES[UNTIMED].about} {_milliseconds(self.seconds)} ms"

    @property
    def label(self) -> str:
        """The text inside the segment."""
        return _milliseconds(self.seconds) if self.width >= _NARROW else ""


@dataclass(frozen=True)
class _Bar:
    """A case and its segments."""

    found: CaseFigures
    segments: list[_Segment]

    @property
    def preparation(self) -> float | None:
        """The share of the answer, in per cent, that prepares picture and crops; None where it was not timed."""
        seconds = [part.seconds for part in self.segments if part.name.endswith("preparation")]
        return 100 * sum(seconds) / sum(part.seconds for part in self.segments) if seconds else None


def _longest_s(report: BenchReport) -> float:
    return max((found.stages["total"].p50 for found in report.cases), default=0.0) or 1.0


def _segments(found: CaseFigures, longest_s: float) -> list[_Segment]:
    stages = found.median_answer_s or {UNTIMED: found.stages["total"].p50}
    return [
        _Segment(name, STAGES[name].colour, seconds, 100 * seconds / longest_s)
        for name, seconds in stages.items()
        if seconds > 0
    ]


def _number(value: float | None) -> str:
    return "" if value is None else text_from_number(value)


def _milliseconds(seconds: float) -> str:
    """Milliseconds, with enough digits for the shortest stage."""
    return f"{1000 * seconds:,.2f}" if seconds < 0.01 else f"{1000 * seconds:,.1f}"


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>sdrpn bench</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222;
 background: #fff; }
code { word-break: break-word; }
.bar { display: flex; height: 1.7rem; margin-bottom: .7rem; background: #8882; }
.bar span { display: block; overflow: hidden; text-align: center; font-size: 12px; line-height: 1.7rem; color: #111; }
table { border-collapse: collapse; margin-bottom: 1rem; }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; vertical-align: top; }
.text, .words td, .words th { text-align: left; }
.new td { border-top: 2px solid #8888; }
.sum { font-style: italic; }
.swatch { display: inline-block; width: .9rem; height: .9rem; margin-right: .5rem; vertical-align: -1px; }
</style>
<h1>sdrpn bench: how long answers take</h1>
<table class="words">
<tr><th>command</th><td><code>{{ report.command }}</code></td></tr>
{% for name, value in report.machine.items() %}
<tr><th>{{ name }}</th><td>{{ 'not installed' if value is none else value }}</td></tr>
{% endfor %}
<tr><th>counted runs</th><td>{{ report.runs }} of every case</td></tr>
{% if report.peak_rss_bytes %}<tr><th>peak memory</th><td>{{ report.peak_rss_bytes | size }}</td></tr>{% endif %}
{% for name, value in report.energy.items() %}<tr><th>{{ name }}</th><td>{{ value | number }}</td></tr>{% endfor %}
</table>
<h2>A whole answer, by stage</h2>
<p>For every case, the answer with the median time; its stages add up to that time. Figures in the bars are
milliseconds.</p>
{% for bar in bars %}
<div><b>{{ bar.found.side }}, {{ bar.found.case }}</b>: {{ bar.found.stages['total'].p50 | milliseconds }} ms
{%- if bar.preparation is not none %}, {{ '%.0f' % bar.preparation }} % of it to prepare the picture and its crops
{%- endif %}</div>
<div class="bar">{% for part in bar.segments %}<span title="{{ part.title }}"
 style="width:{{ '%.2f' % part.width }}%;background:{{ part.colour }}">{{ part.label }}</span>{% endfor %}</div>
{% endfor %}
<table class="words"><tr><th>stage</th><th>what it is</th></tr>
{% for name, stage in key %}
<tr><td><span class="swatch" style="background:{{ stage.colour }}"></span>{{ name }}</td><td>{{ stage.about }}</td></tr>
{% endfor %}
</table>
{% if cases %}
<table class="words"><tr><th>case</th><th>what is asked</th></tr>
{% for name, about in cases.items() %}<tr><td>{{ name }}</td><td>{{ about }}</td></tr>{% endfor %}
</table>
{% endif %}
<h2>Throughput</h2>
<p>Prefill: prompt tokens over the time of the language model before the first token. Decode: from the median step.
Answers: whole answers, one after the other. Last columns: 2 is twice as fast.</p>
<table><tr><th class="text">side</th><th class="text">case</th><th>prefill tokens/s</th><th>decode tokens/s</th>
<th>answers/s</th><th>relative to plain</th><th>relative to the first side</th></tr>
{% for bar in bars %}{% set found = bar.found %}
<tr><td class="text">{{ found.side }}</td><td class="text">{{ found.case }}</td>
{% for value in (found.prefill_tokens_per_s, found.decode_tokens_per_s, found.answers_per_s, found.relative_to_plain,
 found.relative_to_first) %}<td>{{ value | number }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Every stage, in milliseconds</h2>
<p>p50, p95 and p99 over the counted runs, separately for each stage. In italics: times that overlap with stages,
{% for name, about in sums.items() %}{{ name }} ({{ about }}){{ '.' if loop.last else ', ' }}{% endfor %}</p>
<table><tr><th class="text">side</th><th class="text">case</th><th class="text">stage</th><th>p50</th><th>p95</th>
<th>p99</th></tr>
{% for bar in bars %}{% for stage, value in bar.found.stages.items() %}
<tr{% if loop.first %} class="new"{% endif %}><td class="text">{{ bar.found.side }}</td>
<td class="text">{{ bar.found.case }}</td><td class="text{{ ' sum' if stage in sums }}">{{ stage }}</td>
<td>{{ value.p50 | milliseconds }}</td><td>{{ value.p95 | milliseconds }}</td>
<td>{{ value.p99 | milliseconds }}</td></tr>
{% endfor %}{% endfor %}</table>
</html>
"""
