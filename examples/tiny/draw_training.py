"""Draw how base training went, from its logs.

python examples/tiny/draw_training.py examples/tiny/logs docs/pictures/tiny-training.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np

from sdrpn.host.atomic import replacing_file

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

SMOOTHED_LINES = 8
READING = {"page_digit": "digits on pages", "window_digit": "digits in crops of scenes"}
FINDING = {
    ("code", 1): "code, with a crop",
    ("code", 0): "code, one look at large digits",
    ("shape", 0): "shape of the tag, one look",
    ("border", 0): "border of the tag, one look",
}

Points = dict[str, list[tuple[int, float]]]


def read_log(path: Path) -> list[dict[str, float]]:
    """One object a line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def reading_points(folder: Path) -> Points:
    """What the tower reads, over the steps of its three stages."""
    points: Points = defaultdict(list)
    before = 0
    for name in ("V1", "V2", "V3"):
        lines = read_log(folder / f"{name}.log.jsonl")
        for line in lines:
            for field, label in READING.items():
                if field in line:
                    points[label].append((before + int(line["step"]), line[field]))
        before += int(lines[-1]["step"])
    return points


def finding_points(folder: Path) -> Points:
    """What the whole model answers in stage F."""
    points: Points = defaultdict(list)
    for line in read_log(folder / "F.log.jsonl"):
        for (field, crops), label in FINDING.items():
            if field in line and line["crops"] == crops:
                points[label].append((int(line["step"]), line[field]))
    return points


def draw(axes: Axes, points: Points, title: str) -> None:
    """Running means: single lines of a log are of few samples."""
    for label, pairs in points.items():
        steps, shares = (np.array(values, float) for values in zip(*sorted(pairs), strict=True))
        width = min(SMOOTHED_LINES, len(shares))
        window = np.ones(width) / width
        axes.plot(steps[width - 1 :], np.convolve(shares, window, mode="valid"), label=label)
    axes.set(title=title, xlabel="step", ylabel="share that is right", ylim=(0, 1))
    axes.legend(loc="lower right", fontsize=8)


def main() -> None:
    """Read and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    draw(left, reading_points(args.logs), "the tower learns to read (V1, V2, V3)")
    draw(right, finding_points(args.logs), "the model learns to find and to answer (F)")
    args.picture.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(args.picture) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
