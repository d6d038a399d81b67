"""Figures from runs: percentiles by hand, and pages that hold what was measured."""

from __future__ import annotations

import csv
import io
import re

import pytest

from sdrpn.reports.bench_report import (
    STAGES,
    BenchReport,
    CaseFigures,
    Percentiles,
    csv_text,
    html_text,
    percentiles,
    stages_of_median,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], (3.0, 3.0, 3.0)),
        ([4.0, 1.0, 3.0, 2.0], (2.0, 4.0, 4.0)),
        ([float(n) for n in range(1, 101)], (50.0, 95.0, 99.0)),
        ([float(n) for n in range(10, 0, -1)], (5.0, 10.0, 10.0)),
    ],
)
def test_percentiles_by_nearest_rank(values: list[float], expected: tuple[float, float, float]) -> None:
    assert percentiles(values) == Percentiles(*expected)


def report() -> BenchReport:
    stages = {"vision": Percentiles(0.25, 0.3, 0.3), "total": Percentiles(1.0, 1.5, 2.0)}
    answer = {"picture preparation": 0.4, "vision": 0.25, "decode": 0.35}
    first = CaseFigures("one & only", "plain", stages, 123_456.7, 20.0, 1.0, 1.0, 0.0000123, answer)
    total = Percentiles(2.0, 2.0, 2.0)
    second = CaseFigures("torch", "plain", {"total": total}, None, None, 0.5, 1.0, 0.5, {"": 2.0})
    return BenchReport(
        {"processor": "An <EPYC> CPU", "cores": 2}, "sdrpn bench b", 10, (first, second), 123_000_000, {"watts": 15.5}
    )


def test_csv_has_every_stage() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(report()))))
    assert [(row["side"], row["stage"], float(row["p99_s"])) for row in rows] == [
        ("one & only", "vision", 0.3),
        ("one & only", "total", 2.0),
        ("torch", "total", 2.0),
    ]


def test_csv_has_no_exponents() -> None:
    short = CaseFigures("a", "plain", {"total": Percentiles(4e-5, 5e-5, 6e-5)}, None, None, 1.0, None, None)
    text = csv_text(BenchReport({}, "", 1, (short,), None))
    assert text.splitlines()[1] == "a,plain,total,0.000040000,0.000050000,0.000060000"


def test_the_page_draws_bars_in_proportion() -> None:
    page = html_text(report())
    assert 'title="picture preparation 400.0 ms"\n style="width:20.00%' in page  # of 2 s, the longest
    assert 'title="vision 250.0 ms"\n style="width:12.50%' in page
    assert 'title="not timed separately 2,000.0 ms"\n style="width:100.00%' in page
    assert "<b>one &amp; only, plain</b>: 1,000.0 ms, 40 % of it to prepare the picture" in page
    assert "An &lt;EPYC&gt; CPU" in page
    assert "123.0 MB" in page
    assert "15.5" in page
    assert "None" not in page


def test_the_page_says_what_stages_and_cases_are() -> None:
    page = html_text(report())
    assert STAGES["picture preparation"].about in page
    assert "one pass, no RPN" in page
    assert "two crops" not in page  # nobody asked for them


def test_the_page_has_no_exponents() -> None:
    page = html_text(report())
    assert re.search(r"\d[eE][+-]?\d", re.sub("#[0-9a-f]{6}", "", page)) is None
    assert "123,457" in page
    assert "0.0000123" in page


def test_stages_of_the_median_sum_to_its_total() -> None:
    answers = [
        {"vision": 1.0, "tail": 4.0, "total": 5.0, "first token": 5.0},
        {"vision": 2.0, "tail": 1.0, "total": 3.0, "first token": 3.0},
        {"vision": 9.0, "tail": 0.5, "total": 9.5, "first token": 9.5},
    ]
    assert stages_of_median(answers) == {"vision": 1.0, "tail": 4.0}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"total": 2.0}, {"": 2.0}),
        ({"vision": 0.5, "total": 2.0}, {"vision": 0.5, "": 1.5}),
    ],
)
def test_what_was_not_told_apart_is_a_part_too(answer: dict[str, float], expected: dict[str, float]) -> None:
    assert stages_of_median([answer]) == expected
