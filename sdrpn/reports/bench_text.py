"""Figures of a bench as a table and lines. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator

from sdrpn.host.sizes import text_from_bytes, text_from_number
from sdrpn.reports.bench_report import BenchReport, CaseFigures
from sdrpn.reports.text import Part, Table

__all__ = ["bench_text"]


def bench_text(report: BenchReport) -> Iterator[Part]:
    """One row per side and case, then memory and energy."""
    columns = (
        "side",
        "case",
        "first token, ms: p50 / p95 / p99",
        "a token, ms",
        "prefill tokens/s",
        "decode tokens/s",
        "whole answer, s",
        "throughput / plain",
        "/ first side",
    )
    yield Table("", columns, [_row(case) for case in report.cases])
    yield from _bounds(report)
    if report.peak_rss_bytes is not None:
        yield f"peak memory of this process: {text_from_bytes(report.peak_rss_bytes)}"
    for name, value in report.energy.items():
        yield f"{name}: {text_from_number(value, 4)}"


def _row(case: CaseFigures) -> tuple[str, ...]:
    return (
        case.side,
        case.case,
        _milliseconds(case, "first token"),
        _milliseconds(case, "token"),
        _number(case.prefill_tokens_per_s),
        _number(case.decode_tokens_per_s),
        f"{case.stages['total'].p50:.3f}",
        _number(case.relative_to_plain),
        _number(case.relative_to_first),
    )


def _bounds(report: BenchReport) -> Iterator[Part]:
    """What the machine's memory allows, and what was reached of it."""
    rows = [
        (
            case.side,
            case.case,
            "" if case.token_bytes is None else text_from_bytes(case.token_bytes),
            "" if case.bandwidth_share is None else f"{100 * case.bandwidth_share:.0f} %",
            "" if case.prefill_flops_per_s is None else text_from_number(case.prefill_flops_per_s / 1e9),
        )
        for case in report.cases
        if case.token_bytes is not None
    ]
    if report.bandwidth_bytes_per_s is None or not rows:
        return
    share = f"of {text_from_number(report.bandwidth_bytes_per_s / 1e9)} GB/s, as measured here"
    yield Table("", ("side", "case", "a token reads", share, "prefill GFLOP/s"), rows)


def _milliseconds(case: CaseFigures, stage: str) -> str:
    found = case.stages.get(stage)
    return "" if found is None else f"{1e3 * found.p50:.1f} / {1e3 * found.p95:.1f} / {1e3 * found.p99:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else text_from_number(value)
