"""Write what docs/demo-model.md says of the shipped gate, from evaluations of the bundle and of one with the probe.

    sdrpn eval demo --task tags --split mixed --samples 2000 --methods plain,sdrpn --curve --threads 1 --out GATE
    sdrpn eval PROBE_BUNDLE ... --out PROBE          # the same questions
    python examples/demo/gate_page.py --gate GATE --probe PROBE
    python examples/demo/gate_page.py                # the page again, from the figures that are kept

The figures are kept in docs/results/tags-mixed.json; the picture and a part of the page are made from them.
PROBE_BUNDLE is of an RPN with the gate of `sdrpn train --gate --gate-kind probe --preset tiny` on the same labels,
exported as the shipped bundle is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdrpn.errors import BadInput
from sdrpn.evaluation.charts import draw_curve
from sdrpn.evaluation.gate_curve import CurvePoint, GateCurve, JudgeCurve, OwnGate
from sdrpn.host.atomic import replacing_file
from sdrpn.host.json_files import read_json_object

DOCS = Path(__file__).parents[2] / "docs"
FIGURES, PICTURE = DOCS / "results" / "tags-mixed.json", DOCS / "pictures" / "tiny-gate.png"
PAGE, WIDTH = DOCS / "demo-model.md", 130
DIGITS = 6  # of the figures that are kept, after the point
FIRST, LAST = "\n## The gate\n", "\nHow it was trained: "  # around the part that is written
NAMES = {"gate": "gate", "probe": "probe", "confidence": "confidence of the RPN"}
GATE_PARAMETERS, PROBE_PARAMETERS = "310,241", "169"
OWN = {"gate": "as shipped", "probe": "as trained"}  # at their own thresholds
SETTINGS = ("task", "split", "seed", "samples", "thresholds")  # of an evaluation, that are kept
# Shares of questions that are looked at twice, near which the page shows thresholds.
SHARES = {"gate": (0.18, 0.25, 0.6), "probe": (0.18, 0.25, 0.6), "confidence": (0.33, 0.6)}


def main() -> int:
    """Keep new figures, if evaluations are named, and write picture and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", type=Path, metavar="DIR", help="what `sdrpn eval demo` wrote")
    parser.add_argument("--probe", type=Path, metavar="DIR", help="the same of a bundle with the probe")
    args = parser.parse_args()
    if (args.gate is None) != (args.probe is None):
        parser.error("--gate and --probe go together")
    if args.gate is not None:
        kept = _rounded({"gate": _evaluated(args.gate), "probe": _evaluated(args.probe)})
        with replacing_file(FIGURES) as path:
            path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    gate, probe = kept_curves()
    with replacing_file(PICTURE) as path:
        draw_curve("tags, mixed", side_by_side(gate, probe)).save(path, "PNG", optimize=True)
    text = PAGE.read_text("utf-8")
    with replacing_file(PAGE) as path:
        path.write_text(with_section(text, section(gate, probe)), "utf-8")
    return 0


def _evaluated(folder: Path) -> dict[str, Any]:
    """The curve of an evaluation, with what was asked. Raises BadInput where there is none."""
    found = read_json_object(folder / "results.json", "evaluate again")
    if not found.get("curve"):
        raise BadInput(f"{folder} has no curve; evaluate with --curve")
    return {**{name: found["settings"][name] for name in SETTINGS}, **found["curve"]}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def kept_curves() -> tuple[GateCurve, GateCurve]:
    """The curves of the gate and of the probe."""
    kept = read_json_object(FIGURES, "evaluate again")
    gate, probe = _curve(kept["gate"]), _curve(kept["probe"])
    if [point.accuracy for point in gate.fixed] != [point.accuracy for point in probe.fixed]:
        raise BadInput("the evaluations of gate and probe answered differently without them; ask the same questions")
    return gate, probe


def _curve(value: Mapping[str, Any]) -> GateCurve:
    own = dict(value["own"])
    curves = (JudgeCurve(each["judge"], _points(each["points"]), each["auc"]) for each in value["curves"])
    gate = OwnGate(CurvePoint(**own.pop("point")), **own)
    return GateCurve(value["questions"], _points(value["fixed"]), tuple(curves), gate)


def _points(values: list[dict[str, Any]]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(**value) for value in values)


def side_by_side(gate: GateCurve, probe: GateCurve) -> GateCurve:
    """Both in one picture. Each had a run of its own: the seconds of two looks are made equal."""
    pace = named(gate, "always").seconds / named(probe, "always").seconds
    moved = (dataclasses.replace(point, seconds=pace * point.seconds) for point in judged(probe, "probe").points)
    other = dataclasses.replace(judged(probe, "probe"), points=tuple(moved))
    return dataclasses.replace(gate, curves=(gate.curves[0], other, *gate.curves[1:]))


def named(curve: GateCurve, name: str) -> CurvePoint:
    """A rule without a threshold."""
    return next(point for point in curve.fixed if point.name == name)


def judged(curve: GateCurve, judge: str) -> JudgeCurve:
    """All thresholds of a score."""
    return next(each for each in curve.curves if each.judge == judge)


def with_section(page: str, text: str) -> str:
    """The page with another part between its headings. Raises BadInput where it does not have them."""
    before, first, rest = page.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not first or not last:
        raise BadInput(f"{PAGE} has lost {FIRST.strip()!r} or {LAST.strip()!r}; put it back")
    return f"{before}{FIRST}{text}{LAST}{after}"


def section(gate: GateCurve, probe: GateCurve) -> str:
    """The part of the page."""
    own, other = gate.own, probe.own
    assert own is not None
    assert other is not None
    scores = judged(gate, "gate"), judged(probe, "probe"), judged(gate, "confidence")
    asked = f"sdrpn eval demo --task tags --split mixed --samples {gate.questions} --methods plain,sdrpn --curve"
    paragraphs = (
        f"{gate.questions:,} mixed scenes of another seed (`{asked} --threads 1`), on one core of two: each question "
        "was asked with one look, with two, and as the bundle does it, in turn. The probe is the gate of another "
        "bundle, of the same labels, asked the same in a run of its own. `python examples/demo/gate_page.py` writes "
        "this part of the page. All points with intervals: [tags-mixed.json](results/tags-mixed.json).",
        "![accuracy over time and over tokens](pictures/tiny-gate.png)",
        "\n".join(_rows(gate, probe)),
        f"With its own threshold the gate answers {_difference(own)} points against two looks at every question, in "
        f"{_share(own)} of the time; the probe {_difference(other)} points, in {_share(other)}. It has "
        f"{PROBE_PARAMETERS} numbers in place of {GATE_PARAMETERS}, and is no cheaper here: it needs the map at every "
        "question, and the RPN is larger than the gate.",
        f'"Over lot" compares with as many questions that are chosen by lot. Of the gate, {_below(scores[0])}; of the '
        f"probe, {_below(scores[1])}. A lot costs no time of its own. Compared with one that takes the same time, of "
        f"the gate {_below(scores[0], in_time=True)}; of the probe {_below(scores[1], in_time=True)}.",
        "The confidence of the RPN (the strongest cell of its map) is no gate: the area under the ROC curve for the "
        f"questions that another look improves is {scores[0].auc:.3f} for the gate, {scores[1].auc:.3f} for the probe, "
        f"and {scores[2].auc:.2f} for the confidence. Large codes make maps as clear as small ones.",
    )
    return "\n" + "".join(f"{_wrapped(text)}\n\n" for text in paragraphs)[:-1]


def _wrapped(text: str) -> str:
    """A paragraph in the page's width; tables and pictures as they are."""
    return text if text[0] in "|!" else textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _rows(gate: GateCurve, probe: GateCurve) -> Iterator[str]:
    assert gate.own is not None
    assert probe.own is not None
    yield "| rule | second look | looked twice | exact % | mean ms | of two looks | points over lot |"
    yield "|---|---|---|---|---|---|---|"
    yield _row(gate, "one look", "never", named(gate, "plain"))
    for curve, judge, own in ((gate, "gate", gate.own), (probe, "probe", probe.own), (gate, "confidence", None)):
        points = [(point, False) for point in (_near(curve, judge, share) for share in SHARES[judge])]
        points += [] if own is None else [(own.point, True)]
        for point, chosen in sorted(points, key=lambda pair: pair[0].looked_twice):
            name = f"**{NAMES[judge]}, {OWN[judge]}**" if chosen else NAMES[judge]
            least = f"{point.threshold:.3f}" if chosen else f"{point.threshold:.2f}"
            yield _row(curve, name, f"a {'cell' if judge == 'confidence' else 'score'} of {least} or more", point)
    yield _row(gate, "two looks", "always", named(gate, "always"))
    yield _row(gate, "`oracle-gate`", "where it helps", named(gate, "oracle-gate"))


def _near(curve: GateCurve, judge: str, share: float) -> CurvePoint:
    return min(judged(curve, judge).points, key=lambda point: abs(point.looked_twice - share))


def _row(curve: GateCurve, name: str, look: str, point: CurvePoint) -> str:
    low, high = point.interval
    cells = (
        name,
        look,
        f"{100 * point.looked_twice:.0f} %",
        f"{100 * point.accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        f"{1000 * point.seconds:.1f}",
        f"{point.seconds / named(curve, 'always').seconds:.2f}",
        "-" if point.over_random is None else f"{100 * point.over_random:+.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _difference(own: OwnGate) -> str:
    low, high = own.over_always_interval
    return f"{100 * own.over_always:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _share(own: OwnGate) -> str:
    low, high = own.time_share_interval
    return f"{own.time_share:.2f} ({low:.2f} to {high:.2f})"


def _below(curve: JudgeCurve, *, in_time: bool = False) -> str:
    """How many thresholds are below a lot, where, and by how much."""
    points = curve.points
    over = [(point.over_random_in_time if in_time else point.over_random) or 0.0 for point in points]
    below = [point.looked_twice for point, gained in zip(points, over, strict=True) if gained < 0]
    if not below:
        return f"none of {len(points)} thresholds is below"
    few, many = [share for share in below if share < 0.5], [share for share in below if share >= 0.5]
    where = [f"under {100 * max(few) + 0.1:.1f} % of the questions"] if few else []
    where += [f"{100 * min(many):.0f} % or more"] if many else []
    return (
        f"{len(below)} of {len(points)} thresholds are below, which look twice at {' or '.join(where)}, by up to "
        f"{-100 * min(over):.1f} points"
    )


if __name__ == "__main__":
    raise SystemExit(main())
