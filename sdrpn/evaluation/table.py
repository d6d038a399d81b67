"""Format results as rows of text and as a Markdown page. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from sdrpn.evaluation.look_tables import look_tables
from sdrpn.evaluation.methods import METHODS, RPN_PREFIX
from sdrpn.evaluation.results import Difference, MethodResult, Results, RpnMean
from sdrpn.host.escaping import markdown_cell
from sdrpn.reports.text import Table, Text

__all__ = ["markdown", "results_text"]

COLUMNS = (
    "method",
    "accuracy %",
    "95 % interval",
    "contains %",
    "recall %",
    "point in box %",
    "IoU",
    "zoom",
    "cropped %",
    "RoI tokens",
    "ms",
    "speed",
)
DIFFERENCE_COLUMNS = ("method", "less", "points", "95 % interval")
REFERENCES = ("plain", "attention-crop", "sdrpn")  # the baselines of the differences, where they were run


def rows(results: Results) -> list[tuple[str, ...]]:
    """One row per method under `COLUMNS`; a dash for missing figures."""
    return [(name, *_cells(result)) for name, result in results.methods.items()]


def difference_rows(results: Results) -> list[tuple[str, ...]]:
    """Method, baseline, difference in points and its interval, for the baselines in `REFERENCES`."""
    shown = [pair for pair in results.differences if pair.baseline in REFERENCES or pair.method in REFERENCES]
    if results.rpn_mean is not None:
        shown += results.rpn_mean.differences
    return [_difference_cells(pair) for pair in shown]


def results_text(results: Results) -> Text:
    """Methods, and the differences between them."""
    return [
        Table(f"{results.task}: {results.metric}, {results.samples:,} questions", COLUMNS, rows(results)),
        Table("differences", DIFFERENCE_COLUMNS, difference_rows(results)),
        *look_tables(results.causal, results.curve),
    ]


def markdown(results: Results) -> str:
    """All results as a page."""
    lines = [f"# {results.task}: {results.metric}", "", f"{results.samples:,} questions.", ""]
    lines += _table(COLUMNS, rows(results))
    lines += ["", "Speed: seconds of `plain` over those of the method, in the same run.", ""]
    if results.rpn_mean is not None:
        lines += [_rpn_mean_line(results.rpn_mean), ""]
    lines += ["## Methods", ""]
    lines += [f"- `{name}`: {_about(name)}" for name in results.methods]
    if results.differences:
        lines += ["", "## Differences", "", *_table(DIFFERENCE_COLUMNS, difference_rows(results))]
    for table in look_tables(results.causal, results.curve):
        lines += ["", f"## {table.title[0].upper()}{table.title[1:]}", "", *_table(table.columns, table.rows)]
    lines += _extra("Further figures", {name: result.metrics for name, result in results.methods.items()})
    lines += _extra("By category", {name: result.categories for name, result in results.methods.items()})
    lines += [
        "",
        "## Settings",
        "",
        *(f"- {markdown_cell(key)}: {markdown_cell(value)}" for key, value in results.settings.items()),
        "",
    ]
    return "\n".join(lines)


def _cells(result: MethodResult) -> tuple[str, ...]:
    ends = result.accuracy_interval
    return (
        _percent(result.accuracy),
        "-" if ends is None else f"{_percent(ends[0])} to {_percent(ends[1])}",
        _percent(result.contains),
        _percent(result.recall),
        _percent(result.point_in_box),
        _number(result.mean_iou, 3),
        _number(result.mean_zoom, 2),
        _percent(result.crop_share),
        _number(result.roi_tokens, 0),
        _number(None if result.seconds_per_question is None else 1000 * result.seconds_per_question, 1),
        _number(result.relative_speed, 2),
    )


def _difference_cells(pair: Difference) -> tuple[str, ...]:
    low, high = pair.interval
    return pair.method, pair.baseline, f"{100 * pair.difference:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"


def _rpn_mean_line(mean: RpnMean) -> str:
    low, high = mean.accuracy_interval
    interval = f"{_percent(mean.accuracy)} % ({_percent(low)} to {_percent(high)})"
    return f"Mean of {', '.join(f'`{name}`' for name in mean.methods)}: {interval}."


def _extra(title: str, values: dict[str, dict[str, float]]) -> list[str]:
    """A section with named figures of every method, where there are any."""
    names = list(dict.fromkeys(name for figures in values.values() for name in figures))
    if not names:
        return []
    body = [(method, *(_number(figures.get(name), 3) for name in names)) for method, figures in values.items()]
    return ["", f"## {title}", "", *_table(("method", *names), body)]


def _about(name: str) -> str:
    if name.startswith(RPN_PREFIX):
        return f"{METHODS['sdrpn'].about}: {name.removeprefix(RPN_PREFIX)}"
    return METHODS[name].about


def _table(columns: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines: list[Sequence[str]] = [columns, ("---",) * len(columns), *body]
    return ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
