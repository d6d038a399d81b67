"""A page to inspect labels: counts, and the first pictures beside their labels."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sdrpn.errors import BadImage
from sdrpn.host.atomic import replacing_directory, replacing_file
from sdrpn.images.image import open_image
from sdrpn.images.names import leads_out
from sdrpn.labels.denoise import BACKGROUND, FOREGROUND
from sdrpn.labels.label_picture import LEGEND, LabelledPicture, contact_sheet, draw_pair
from sdrpn.labels.labelling import LABELS, Counts
from sdrpn.labels.shards import grid_hw, read_shards
from sdrpn.method.geometry import Seen

__all__ = ["PICTURES", "REPORT", "SHEET", "write_report"]

REPORT, SHEET, PICTURES = "report.html", "samples.png", "samples"
SAMPLES = 24


@dataclass(frozen=True)
class _Shown:
    """One labelled question on the page. problem: why there is no picture; name: its file."""

    id: str
    question: str
    image: str
    foreground: int
    background: int
    ignored: int
    name: str
    problem: str | None


def write_report(out: Path, images: Path, counts: Counts, provenance: dict[str, Any]) -> None:
    """Write `report.html`, its pictures, and `samples.png` with all of them on one sheet, into a label folder."""
    fit: Seen = provenance.get("fit", "pad")
    labelled, shown = list[LabelledPicture](), list[_Shown]()
    with replacing_directory(out / PICTURES, exist_ok=True) as folder:
        for number, row in enumerate(islice(read_shards(out / LABELS), SAMPLES)):
            sample, problem = _opened(images, row, provenance)
            shown.append(_shown(row, f"{number:02}.jpg", problem))
            if sample is not None:
                draw_pair(sample, fit).save(folder / shown[-1].name, "JPEG", quality=90)
                labelled.append(sample)
    with replacing_file(out / SHEET) as path:
        contact_sheet(labelled, fit).save(path, "PNG")
    with replacing_file(out / REPORT) as path:
        path.write_text(_page(counts, provenance, shown), "utf-8")


def _opened(images: Path, row: dict[str, Any], about: dict[str, Any]) -> tuple[LabelledPicture | None, str | None]:
    """A row's picture with its labels, or why it cannot be shown."""
    if leads_out(row["image"]):
        return None, f"{row['image']!r} leads out of the folder of pictures"
    try:
        picture = open_image(images / row["image"])
    except BadImage as error:  # the page is for inspection: a picture may be missing
        return None, str(error)
    cells = np.array(row["cells"], np.int8).reshape(grid_hw(row, about))
    return LabelledPicture(picture, cells, row["question"]), None


def _shown(row: Mapping[str, Any], name: str, problem: str | None) -> _Shown:
    cells = np.array(row["cells"], np.int8)
    foreground, background = int((cells == FOREGROUND).sum()), int((cells == BACKGROUND).sum())
    ignored = cells.size - foreground - background
    return _Shown(row["id"], row["question"], row["image"], foreground, background, ignored, name, problem)


def _page(counts: Counts, provenance: Mapping[str, Any], shown: list[_Shown]) -> str:
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_PAGE).render(
        counts=[(name.replace("_", " "), value) for name, value in dataclasses.asdict(counts).items()],
        legend=[(f"rgb{colour}", about) for colour, about in LEGEND.values()],
        shown=shown,
        pictures=PICTURES,
        sheet=SHEET,
        provenance=json.dumps(provenance, indent=1, ensure_ascii=False),
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Labels</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; color: #dee0e4; background: #18191c; }
a { color: #8fc7ff; }
td, th { text-align: left; padding: .1rem 1.5rem .1rem 0; } td.number { text-align: right; }
.swatch { display: inline-block; width: 1rem; height: 1rem; margin-right: .5rem; vertical-align: -2px; }
.legend { position: sticky; top: 0; background: #18191c; padding: .5rem 0; } .meaning { margin-right: 2rem; }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(36rem, 100%), 1fr)); gap: 2rem; }
figure { margin: 0; } figure img { width: 100%; display: block; }
figcaption { overflow-wrap: anywhere; padding-top: .4rem; } .question { font-size: 1.15rem; white-space: pre-wrap; }
.faint { color: #9a9ea6; font-size: .9rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
<h1>Labels</h1>
<table>
{% for name, value in counts %}
<tr><td>{{ name }}</td><td class="number">{{ '{:,}'.format(value) }}</td></tr>
{% endfor %}
</table>
{% if shown %}
<h2>The first {{ shown | length }} labelled questions</h2>
<p>Left: the picture as the model sees it; right: the same in grey with the labels of its grid cells. All of them on one
sheet: <a href="{{ sheet }}">{{ sheet }}</a></p>
<p class="legend">{% for colour, about in legend %}<span class="meaning"><span class="swatch"
 style="background:{{ colour }}"></span>{{ about }}</span>{% endfor %}</p>
<div class="samples">
{% for entry in shown %}
<figure>
{% if entry.problem is none %}
<a href="{{ pictures }}/{{ entry.name }}"><img src="{{ pictures }}/{{ entry.name }}" alt="picture and labels"></a>
{% else %}
<p>The picture cannot be shown: {{ entry.problem }}</p>
{% endif %}
<figcaption><div class="question">{{ entry.question }}</div>
<div class="faint">{{ entry.id }}, {{ entry.image }}; cells of foreground: {{ entry.foreground }},
background: {{ entry.background }}, ignored: {{ entry.ignored }}</div></figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
<h2>Provenance</h2>
<pre>{{ provenance }}</pre>
</html>
"""
