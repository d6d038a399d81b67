"""A page of a method's worst cases: picture, heat map and crops, or why there are none, and the answers of all.

Questions that another method got right come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sdrpn.errors import BadImage
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.worst_pictures import Looked, draw_panels, inside
from sdrpn.host.atomic import replacing_directory
from sdrpn.method.geometry import Seen
from sdrpn.method.overlay import HEAT_COLOURS

__all__ = ["WORST", "worst_cases", "write_worst_cases"]

WORST = "worst"
CASES = 24
# The first of these that was run is examined; other methods show another picture, or have no second pass.
LOOKED_INTO = ("sdrpn", "attention-crop", "teacher-crop", "vicrop", "oracle-crop")


@dataclass(frozen=True)
class Case:
    """One question: the record of the method, and the answers of all methods."""

    record: Record
    answers: Mapping[str, Record]


def worst_cases(methods: Sequence[str], records: Sequence[Record], count: int = CASES) -> list[Case]:
    """The cases with the largest deficit to the best other method; ties: wrong answers first, then the worst crop."""
    method = next((name for name in LOOKED_INTO if name in methods), None)
    if method is None:
        return []
    answers: dict[int, dict[str, Record]] = {}
    for record in records:
        answers.setdefault(record.index, {})[record.method] = record
    cases = [
        Case(found[method], {name: found[name] for name in methods if name in found})
        for found in answers.values()
        if method in found
    ]
    return sorted(cases, key=_rank)[:count]


def write_worst_cases(
    out: Path, task: Task, methods: Sequence[str], records: Sequence[Record], fit: Seen = "pad"
) -> None:
    """Write `worst/index.html` with its pictures to a folder, replacing an earlier one; nothing where no method has a
    second pass.

    Args:
        fit: how pictures became the square that maps cover, see `VisionSpec`
    """
    cases = worst_cases(methods, records)
    if not cases:
        return
    with replacing_directory(out / WORST, exist_ok=True) as folder:
        shown = [
            _shown(folder, f"{number:03}", case, task.samples[case.record.index], fit)
            for number, case in enumerate(cases)
        ]
        (folder / "index.html").write_text(_page(task, cases[0].record.method, shown), "utf-8")


def _rank(case: Case) -> tuple[float, float, float, int]:
    own, best = case.record.score or 0.0, max(record.score or 0.0 for record in case.answers.values())
    return own - best, own, case.record.recall or 0.0, case.record.index


@dataclass(frozen=True)
class _Figure:
    """A picture file with its caption. heat_top: the upper end of the colour scale, where there is one."""

    file: str
    caption: str
    heat_top: str | None


@dataclass(frozen=True)
class _Shown:
    """One case on the page. remarks: errors, or why there is no crop or no map."""

    case: Case
    sample: Sample
    truths: tuple[str, ...]
    figures: tuple[_Figure, ...]
    remarks: tuple[str, ...]


def _shown(folder: Path, name: str, case: Case, sample: Sample, fit: Seen) -> _Shown:
    """Draw one case into the folder."""
    record, remarks = case.record, _remarks(case.record)
    try:
        panels = draw_panels(_looked(sample.open_picture(), record, sample, fit))
    except BadImage as error:
        panels, remarks = [], (*remarks, f"The picture cannot be read: {error}")
    figures = []
    for number, panel in enumerate(panels):
        file = f"{name}-{panel.name}.jpg" if number else f"{name}.jpg"
        panel.image.save(folder / file, "JPEG", quality=88)
        figures.append(_Figure(file, panel.caption, None if panel.heat_top is None else f"{panel.heat_top:.2f}"))
    return _Shown(case, sample, tuple(dict.fromkeys(sample.answers)), tuple(figures), remarks)


def _remarks(record: Record) -> tuple[str, ...]:
    if record.problem is not None:
        return (f"Not asked: {record.problem}",)
    remarks = []
    if not record.crops_xyxy_px:
        reason = (record.note or "the record does not say why").removeprefix("nothing inserted: ")
        remarks.append(f"No crop: {reason}")
    elif record.note is not None:
        remarks.append(f"Crop: {record.note}")
    if record.map_percent is None:
        remarks.append("No heat map: this method does not choose from one, or the record is of an older version")
    return tuple(remarks)


def _looked(picture: Image.Image, record: Record, sample: Sample, fit: Seen) -> Looked:
    """The parts of a record that can be drawn over its picture."""
    strength = None
    if record.map_percent is not None:
        strength = np.array(record.map_percent, np.float32).reshape(record.map_shape()) / np.float32(100)
    truth = [inside(box, picture.size) for box in sample.boxes_xyxy_px]
    kept = (*record.kept_cells, *(None,) * len(record.crops_xyxy_px))
    crops = [(inside(box, picture.size), cells) for box, cells in zip(record.crops_xyxy_px, kept, strict=False)]
    return Looked(
        picture,
        [box for box in truth if box is not None],
        [(box, cells) for box, cells in crops if box is not None],
        strength,
        fit,
    )


def _page(task: Task, method: str, shown: Sequence[_Shown]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        task=task,
        method=method,
        shown=shown,
        heat=", ".join(f"rgb{tuple(map(int, colour))}" for colour in HEAT_COLOURS),
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ task.name }}: where {{ method }} went wrong</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #dee0e4; background: #18191c; }
section { margin: 2.5rem 0; border-top: 1px solid #8886; } h2 { overflow-wrap: anywhere; margin-bottom: .3rem; }
td, th { text-align: left; vertical-align: top; padding: .1rem 1.5rem .1rem 0; overflow-wrap: anywhere; }
.right { color: #7fdc9b; } .wrong { color: #ff8f85; } .faint { color: #9a9ea6; }
.remark { border-left: 4px solid #f0c040; padding-left: .7rem; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 1rem 0 0; max-width: 800px; } figure img { width: 100%; display: block; }
.box { display: inline-block; width: 1rem; height: 1rem; border: 3px solid; vertical-align: -4px; margin-right: .5rem; }
.scale { display: inline-block; width: 8rem; height: .8rem; margin: 0 .4rem;
 background: linear-gradient(90deg, {{ heat }}); }
</style>
<h1>{{ task.name }}: where {{ method }} went wrong</h1>
<p>First the questions that another method got right, then those that none did, last those that were answered right;
ties are ordered by the fit of the crop, worst first. Click on a picture to see it in full size.<br>
<span class="box" style="color:#fff"></span>the true boxes, where the task has them<br>
<span class="box" style="color:#50dcff"></span>the crops of {{ method }}</p>
{% for entry in shown %}{% set record = entry.case.record %}
<section>
<h2>{{ loop.index }}. {{ entry.sample.question }}</h2>
<p class="faint">{{ entry.sample.id }}{% if entry.sample.category %}, {{ entry.sample.category }}{% endif %}</p>
<table>
<tr><th>true answer</th><td>{{ entry.truths | join(', ') or 'the task has none' }}</td><td></td></tr>
{% for name, other in entry.case.answers.items() %}
<tr><th>{{ name }}{% if name == record.method %} (this page){% endif %}</th>
<td{% if other.score is not none %} class="{{ 'right' if other.score >= 0.5 else 'wrong' }}"{% endif %}>
{{- other.answer or '(nothing)' }}</td>
<td class="faint">{% if other.score is not none %}score {{ '%.2f' % other.score }}{% endif %}</td></tr>
{% endfor %}
</table>
{% for remark in entry.remarks %}
<p class="remark">{{ remark }}</p>
{% endfor %}
<div class="figures">
{% for figure in entry.figures %}
<figure><a href="{{ figure.file }}"><img src="{{ figure.file }}" alt="{{ figure.caption }}"></a>
<figcaption>{{ figure.caption }}
{% if figure.heat_top is not none %}<br>0<span class="scale"></span>{{ figure.heat_top }}{% endif %}</figcaption>
</figure>
{% endfor %}
</div>
</section>
{% endfor %}
</html>
"""
