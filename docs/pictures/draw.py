"""The pictures of the documentation that are drawn, not measured: graphs, cache rows; and two of what was measured.

python docs/pictures/draw.py            # writes graphs, rows, first-token and threshold.png beside itself
python docs/pictures/draw.py --out DIR
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from sdrpn import Session
from sdrpn.families.registry import family_of
from sdrpn.images.image import open_image
from sdrpn.method.roi import roi_map
from sdrpn.tags import shipped_scene

PICTURES = Path(__file__).parent
BENCHMARKS = PICTURES.parent / "benchmarks.md"

INK, QUIET, PAPER = "#1c2733", "#8a97a6", "#ffffff"
GRAPH, HOST, NEW, KEPT = "#d6e6f5", "#f4efe4", "#2f7fc1", "#bcd6ec"
ACCENT = "#d9822b"


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURES, metavar="DIR")
    out = parser.parse_args().out
    mpl.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "text.color": INK, "axes.edgecolor": QUIET})
    figures = {"graphs": graphs(), "rows": rows(), "first-token": first_token(BENCHMARKS), "threshold": threshold()}
    for name, figure in figures.items():
        # Without the version of matplotlib, so that the same picture has the same bytes.
        figure.savefig(out / f"{name}.png", dpi=150, facecolor=PAPER, metadata={"Software": None})


# --- the four graphs


def graphs() -> Figure:
    """What runs, and what flows between."""
    figure = Figure(figsize=(8.4, 4.3))
    axes = _blank(figure, 84, 43)
    _box(axes, 2, 30, 11, 8, "picture", "full resolution", HOST)
    _box(axes, 2, 6, 11, 8, "question", "token ids", HOST)
    _box(axes, 19, 30, 12, 8, "vision", "tower, projector", GRAPH, bold=True)
    _box(axes, 37, 18, 12, 8, "trunk", "layers 0..K-1", GRAPH, bold=True)
    _box(axes, 56, 30, 12, 8, "rpn", "T small layers", GRAPH, bold=True)
    _box(axes, 56, 6, 12, 8, "tail", "layers K..L-1, head", GRAPH, bold=True)
    _box(axes, 19, 6, 12, 8, "embedding", "a table, read by row", HOST)
    _box(axes, 37, 30, 12, 8, "crop", "from the map", HOST)
    _box(axes, 73, 6, 9, 8, "answer", "token by token", HOST)
    _arrow(axes, (13, 34), (19, 34), "pixels", above=True)
    _arrow(axes, (13, 10), (19, 10), "")
    _arrow(axes, (30, 30), (38.5, 26), "image tokens", at=(30, 26.8))
    _arrow(axes, (31, 11), (39, 18), "rows", at=(31.8, 15.3))
    _arrow(axes, (49, 24), (57, 30), "tap", at=(54.6, 26.2))
    _arrow(axes, (49, 20), (57, 14), "tap", at=(54.6, 17.8))
    _arrow(axes, (56, 34), (49, 34), "scores", above=True, colour=ACCENT)
    _arrow(axes, (37, 34), (31, 34), "pixels", above=True, colour=ACCENT)
    _arrow(axes, (68, 10), (73, 10), "logits", above=True)
    _arrow(axes, (77.5, 6), (25, 6), "the chosen token is the next row", at=(51, 1.2), bend=-0.13)
    axes.text(
        1, 41.3, "blue: ONNX graphs or engines.  sand: the host.  orange: only where something was found.", color=QUIET
    )
    return figure


# --- rows of the caches over both passes


@dataclass(frozen=True)
class _Moment:
    """One line of the picture: for every graph which stretches of rows are kept and which are computed."""

    title: str
    runs: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]  # graph -> (stretch, state)


# A prompt of LLaVA-1.5 with a crop of which 115 cells are kept.
_STRETCHES = {"system": 35, "image": 576, "question": 24, "RoI": 115}
_MOMENTS = (
    _Moment(
        "first question",
        (
            ("trunk", (("system", "new"), ("image", "new"), ("question", "new"))),
            ("rpn", (("system", "new"), ("image", "new"), ("question", "new"))),
        ),
    ),
    _Moment(
        "nothing found: no crop",
        (
            ("trunk", (("system", "kept"), ("image", "kept"), ("question", "kept"))),
            ("tail", (("system", "new"), ("image", "new"), ("question", "new"))),
        ),
    ),
    _Moment(
        "or: a crop",
        (
            ("trunk", (("system", "kept"), ("image", "kept"), ("RoI", "new"), ("question", "new"))),
            ("tail", (("system", "new"), ("image", "new"), ("RoI", "new"), ("question", "new"))),
        ),
    ),
    _Moment(
        "next question, same picture",
        (
            ("trunk", (("system", "kept"), ("image", "kept"), ("question", "new"))),
            ("rpn", (("system", "kept"), ("image", "kept"), ("question", "new"))),
            ("tail", (("system", "kept"), ("image", "kept"), ("question", "new"))),
        ),
    ),
)


def rows() -> Figure:
    """Which rows of which graph are computed at which moment."""
    lines = sum(len(moment.runs) for moment in _MOMENTS) + len(_MOMENTS)
    figure = Figure(figsize=(8.4, 0.33 * lines + 0.6))
    axes = _blank(figure, 1000, 10 * lines + 12)
    place = 10.0 * lines + 6
    axes.text(0, place + 2, "dark: computed now.  light: kept from before, exactly.", color=QUIET)
    for moment in _MOMENTS:
        place -= 9
        axes.text(0, place + 1, moment.title, fontweight="bold")
        for graph, stretches in moment.runs:
            place -= 9
            _row_line(axes, place, graph, stretches)
        place -= 2
    return figure


def _row_line(axes: Any, place: float, graph: str, stretches: tuple[tuple[str, str], ...]) -> None:
    axes.text(70, place + 3.5, graph, ha="right", va="center")
    left = 80.0
    for name, state in stretches:
        width = _STRETCHES[name] * 1.12
        colour = NEW if state == "new" else KEPT
        axes.add_patch(FancyBboxPatch((left, place), width, 7, boxstyle="square,pad=0", fc=colour, ec=PAPER, lw=1))
        label = f"{name} {_STRETCHES[name]}" if width > 60 else str(_STRETCHES[name])
        ink = PAPER if state == "new" else INK
        axes.text(left + width / 2, place + 3.3, label, ha="center", va="center", color=ink, fontsize=7)
        left += width + 3


# --- time to the first token, as docs/benchmarks.md has it


def first_token(page: Path) -> Figure:
    """Prefill over plain LLaVA's, ours and computing everything again, from the first table of the page."""
    found = prefill_ratios(page)
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(found))
    axes.barh([place - 0.19 for place in places], [ours for _, ours, _ in found], 0.36, color=NEW, label="sdrpn")
    again = [(place, official) for place, (_, _, official) in zip(places, found, strict=True) if official is not None]
    axes.barh(
        [place + 0.19 for place, _ in again],
        [official for _, official in again],
        0.36,
        color=QUIET,
        label="computing everything again, as the official code does",
    )
    for place, (_, ours, official) in zip(places, found, strict=True):
        axes.text(ours + 0.03, place - 0.19, f"{ours:.2f}", va="center", fontsize=8)
        if official is not None:
            axes.text(official + 0.03, place + 0.19, f"{official:.2f}", va="center", fontsize=8)
    axes.set_yticks(list(places), [case for case, _, _ in found])
    axes.invert_yaxis()
    axes.axvline(1, color=QUIET, linewidth=0.8, linestyle=":")
    axes.set_xlabel("time to the first token without vision, plain LLaVA = 1 (CPU, 2 threads)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def prefill_ratios(page: Path) -> list[tuple[str, float, float | None]]:
    """(case, ours with two threads, official or None) of every row but plain LLaVA's own.

    Raises: ValueError where the page has no such table
    """
    table = re.search(r"^\| case \|.*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    if table is None:
        raise ValueError(f"{page} has no table that begins with the column case")
    found = []
    for line in table.group(1).splitlines():
        case, _, ours, _, official, *_ = (cell.strip(" *") for cell in line.strip("|").split("|"))
        if case != "plain":
            found.append((case, float(ours), float(official) if official else None))
    return found


# --- one map of the shipped model under several thresholds

_THRESHOLDS = (0.05, 0.3, 0.6)


def threshold() -> Figure:
    """The map over the shipped scene, and for each threshold which cells fire and what is cropped."""
    scene = shipped_scene()
    picture = open_image(scene.picture)
    with Session.open("demo", backend="onnxruntime", threads=1) as session:
        own, vision, family = session.policy, session.spec.vision, family_of(session.spec)
        trace = session.answer(picture, scene.question, max_new_tokens=1, trace=True).trace
    assert trace is not None
    assert trace.roi_logits is not None
    figure = Figure(figsize=(8.4, 2.55))
    grey = np.asarray(picture.convert("L"))
    x1, y1, x2, y2 = vision.grid(picture.size).extent_px
    for place in range(1 + len(_THRESHOLDS)):
        axes = figure.add_axes((0.005 + 0.249 * place, 0.0, 0.243, 0.84))
        axes.imshow(grey, cmap="gray", vmin=-120, vmax=255)
        axes.set_axis_off()
        if place == 0:
            axes.imshow(roi_map(trace.roi_logits), cmap="inferno", alpha=0.65, extent=(x1, x2, y2, y1), vmin=0, vmax=1)
            axes.set_title(f"the map for the question\n{scene.question}", fontsize=7)
            continue
        policy = replace(own, threshold=_THRESHOLDS[place - 1])
        decision = family.decide(policy, session.spec)(trace.roi_logits, picture.size)
        fired = np.ma.masked_less_equal(decision.blurred_map, policy.threshold)
        axes.imshow(np.ones_like(fired), cmap="Wistia", alpha=0.6 * ~fired.mask, extent=(x1, x2, y2, y1))
        for crop in decision.crops:
            left, top, right, bottom = crop.box_xyxy_px
            box = Rectangle((left, top), right - left, bottom - top, fill=False, ec=NEW, lw=2)
            axes.add_patch(box)
        name = "the model's own: " if policy == own else ""
        share = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (c.box_xyxy_px for c in decision.crops)) / grey.size
        what = f"crops {share:.0%} of the picture" if decision.crops else "no crop"
        axes.set_title(f"{name}{policy.threshold:g}\n{what}", fontsize=8)
    return figure


# --- parts


def _blank(figure: Figure, width: float, height: float) -> Any:
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return axes


def _box(
    axes: Any,
    left: float,
    bottom: float,
    width: float,
    height: float,
    name: str,
    detail: str,
    colour: str,
    bold: bool = False,
) -> None:
    shape = "round,pad=0,rounding_size=1"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, fc=colour, ec=INK if bold else QUIET))
    middle = left + width / 2
    axes.text(middle, bottom + height * 0.62, name, ha="center", va="center", fontweight="bold" if bold else "normal")
    axes.text(middle, bottom + height * 0.27, detail, ha="center", va="center", fontsize=7, color=INK)


def _arrow(
    axes: Any,
    start: tuple[float, float],
    end: tuple[float, float],
    label: str,
    *,
    at: tuple[float, float] | None = None,
    above: bool = False,
    colour: str = INK,
    bend: float = 0.0,
) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=colour, connectionstyle=style)
    )
    x, y = at or ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + (1.3 if above else 0))
    axes.text(x, y, label, ha="center", va="center", fontsize=7, color=colour)


if __name__ == "__main__":
    main()
