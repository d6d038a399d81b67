"""A page to inspect gate labels: counts by case and view, and some questions of each case with their answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sdrpn.errors import BadImage
from sdrpn.gate.labelling import GateCounts, judged_rows
from sdrpn.gate.rule import CASES, GateRule
from sdrpn.host.atomic import replacing_directory, replacing_file
from sdrpn.images.image import open_image
from sdrpn.images.names import leads_out

__all__ = ["REPORT", "rule_difference", "write_gate_report"]

REPORT, PICTURES = "report.html", "samples"
OF_EACH_CASE = 8
LONGEST_SIDE_PX = 640


def rule_difference(folder: Path, rule: GateRule) -> dict[str, int] | None:
    """How the two targets differ: questions by both cases ("enough, again": by the truth, by the best view).

    None where a question has no true answer.
    """
    counts: dict[str, int] = {}
    by_truth, by_best = (dataclasses.replace(rule, target=target) for target in ("truth", "highest"))
    rows = list(judged_rows(folder, by_best))
    if any(row["truth"] is None for row, _ in rows):
        return None
    for (_, best), (_, truth) in zip(rows, judged_rows(folder, by_truth), strict=True):
        if best is not None and truth is not None:
            key = f"{truth.case}, {best.case}"
            counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def write_gate_report(
    out: Path,
    images: Path,
    counts: GateCounts,
    provenance: Mapping[str, Any],
    difference: Mapping[str, int] | None,
) -> None:
    """Write `report.html` and its pictures into a folder of gate labels."""
    shown: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for row, judged in judged_rows(out, GateRule(**provenance["rule"])):
        if judged is not None and len(shown[judged.case]) < OF_EACH_CASE:
            answers = list(zip(provenance["views"], row["answers"], judged.right, strict=True))
            shown[judged.case].append({**row, "answers": answers})
    with replacing_directory(out / PICTURES, exist_ok=True) as folder:
        number = 0
        for rows in shown.values():
            for row in rows:
                row["name"] = f"{number:02}.jpg"
                row["problem"] = _save(images, row["image"], folder / row["name"])
                number += 1
    with replacing_file(out / REPORT) as path:
        path.write_text(_page(counts, provenance, difference, shown), "utf-8")


def _save(images: Path, name: str, path: Path) -> str | None:
    """Why the picture cannot be shown; None: it is there."""
    if leads_out(name):
        return f"{name!r} leads out of the folder of pictures"
    try:
        picture = open_image(images / name)
    except BadImage as error:  # the page is for inspection: a picture may be missing
        return str(error)
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    picture.save(path, "JPEG", quality=85)
    return None


def _page(
    counts: GateCounts,
    provenance: Mapping[str, Any],
    difference: Mapping[str, int] | None,
    shown: Mapping[str, list[dict[str, Any]]],
) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        cases=[*counts.cases.items(), ("not asked", counts.not_asked), ("in a balanced set", counts.balanced)],
        views=list(zip(provenance["views"], counts.right, strict=True)),
        difference=list(islice((difference or {}).items(), 12)),
        shown=[(case, rows) for case, rows in shown.items() if rows],
        pictures=PICTURES,
        provenance=json.dumps(provenance, indent=1, ensure_ascii=False),
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Gate labels</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #dee0e4; background: #18191c; }
td, th { text-align: left; padding: .1rem 1.5rem .1rem 0; } td.number { text-align: right; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 2rem; }
figure { margin: 0; } figure img { width: 100%; display: block; }
figcaption { overflow-wrap: anywhere; padding-top: .4rem; } .question { font-size: 1.1rem; white-space: pre-wrap; }
.faint { color: #9a9ea6; font-size: .9rem; } .right { color: #7fd08a; } .wrong { color: #f08a80; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
<h1>Gate labels</h1>
<table>
<tr><th>case</th><th>questions</th></tr>
{% for name, value in cases %}
<tr><td>{{ name }}</td><td class="number">{{ '{:,}'.format(value) }}</td></tr>
{% endfor %}
</table>
<h2>Right answers</h2>
<table>
<tr><th>view</th><th>right</th></tr>
{% for name, value in views %}
<tr><td>{{ name }}</td><td class="number">{{ '{:,}'.format(value) }}</td></tr>
{% endfor %}
</table>
{% if difference %}
<h2>By the true answers, and by the best view</h2>
<p>Questions by both cases: first that by the true answers, then that by the best view's answer in their place.</p>
<table>
{% for name, value in difference %}
<tr><td>{{ name }}</td><td class="number">{{ '{:,}'.format(value) }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% for case, rows in shown %}
<h2>{{ case }}</h2>
<div class="samples">
{% for row in rows %}
<figure>
{% if row.problem is none %}
<img src="{{ pictures }}/{{ row.name }}" alt="picture">
{% else %}
<p>The picture cannot be shown: {{ row.problem }}</p>
{% endif %}
<figcaption><div class="question">{{ row.question }}</div>
{% for view, answer, right in row.answers %}
<div class="{{ 'right' if right else 'wrong' }}">{{ view }}: {{ answer }}</div>
{% endfor %}
<div class="faint">{{ row.id }}, {{ row.image }}{% if row.truth is not none %}; true answer: {{ row.truth }}{% endif %}
</div></figcaption>
</figure>
{% endfor %}
</div>
{% endfor %}
<h2>Provenance</h2>
<pre>{{ provenance }}</pre>
</html>
"""
