"""What a second look is worth, as tables: the crop's content, and accuracy over time. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from sdrpn.evaluation.causal import CausalResult
from sdrpn.evaluation.gate_curve import CurvePoint, GateCurve
from sdrpn.reports.text import Table

__all__ = ["look_tables"]

ARM_COLUMNS = ("content of the crop", "accuracy %", "95 % interval", "gap closed %", "95 % interval", "other answer %")
PAIR_COLUMNS = ("true crop against", "both right", "only true", "only other", "neither", "points", "95 % interval", "p")
CURVE_COLUMNS = (
    "rule",
    "threshold",
    "looked twice %",
    "accuracy %",
    "95 % interval",
    "ms",
    "tokens",
    "over random",
    "in time",
)
SHOWN_THRESHOLDS = 12  # of every score; results.json has all


def look_tables(causal: CausalResult | None, curve: GateCurve | None) -> list[Table]:
    """Three tables at most."""
    tables = [] if causal is None else _causal_tables(causal)
    return tables if curve is None else [*tables, _curve_table(curve)]


def _causal_tables(causal: CausalResult) -> list[Table]:
    arms = [
        (
            arm.method,
            _percent(arm.accuracy),
            _span(arm.interval),
            "-" if arm.gap_closed is None else _percent(arm.gap_closed),
            "-" if arm.gap_interval is None else _span(arm.gap_interval),
            "-" if arm.other_accuracy is None else _percent(arm.other_accuracy),
        )
        for arm in causal.arms
    ]
    pairs = [
        (
            table.control,
            *map(str, (table.both, table.only_true, table.only_control, table.neither)),
            f"{100 * table.difference:+.1f}",
            _span(table.interval, "+.1f"),
            f"{table.p_value:.2g}",
        )
        for table in causal.tables
    ]
    crops = f"{causal.with_crop:,} of {causal.questions:,} questions with a crop"
    return [
        Table(f"the same crop with other content, {crops}", ARM_COLUMNS, arms),
        Table("right and wrong, question by question", PAIR_COLUMNS, pairs),
    ]


def _curve_table(curve: GateCurve) -> Table:
    rows = [_point_row(point) for point in curve.fixed]
    if curve.own is not None:
        rows.append(_point_row(curve.own.point, "own gate"))
    for judged in curve.curves:
        rows += [_point_row(point) for point in _thinned(judged.points)]
    return Table(f"accuracy over time, {curve.questions:,} questions", CURVE_COLUMNS, rows)


def _point_row(point: CurvePoint, name: str | None = None) -> tuple[str, ...]:
    return (
        name or point.name,
        "-" if point.threshold is None else f"{point.threshold:.3g}",
        _percent(point.looked_twice),
        _percent(point.accuracy),
        _span(point.interval),
        f"{1000 * point.seconds:.1f}",
        f"{point.tokens:.0f}",
        _over(point.over_random, point.over_random_interval),
        _over(point.over_random_in_time, point.over_random_in_time_interval),
    )


def _over(difference: float | None, ends: tuple[float, float] | None) -> str:
    return "-" if difference is None or ends is None else f"{100 * difference:+.1f} ({_span(ends, '+.1f')})"


def _thinned(points: Sequence[CurvePoint]) -> list[CurvePoint]:
    last = len(points) - 1
    count = min(SHOWN_THRESHOLDS, len(points))
    places = [round(number * last / max(1, count - 1)) for number in range(count)]
    return [points[place] for place in dict.fromkeys(places)]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _span(ends: tuple[float, float], style: str = ".1f") -> str:
    return f"{100 * ends[0]:{style}} to {100 * ends[1]:{style}}"
