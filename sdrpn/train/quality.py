"""Agreement of RoI maps with held-out labels. NumPy only; knows no model.

Every sample has h x w cells of its own. The labels come from attention; they are not the ground truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.labels.denoise import FOREGROUND, IGNORED
from sdrpn.method.grids import Box
from sdrpn.method.roi import blur, roi_map

__all__ = ["THRESHOLDS", "AtThreshold", "Quality", "measure_quality"]

Float32 = NDArray[np.float32]
Int8 = NDArray[np.int8]
Bool = NDArray[np.bool_]

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class AtThreshold:
    """The figures at one threshold.

    precision, recall, cell_iou: over the labelled cells of all samples, for the unblurred map
    box_iou: mean over the samples of the IoU between the box around all cells above the threshold in the blurred map
        without sinks, which would be cropped, and the box around the label's foreground
    """

    threshold: float
    precision: float
    recall: float
    cell_iou: float
    box_iou: float


@dataclass(frozen=True)
class Quality:
    """Agreement with labels.

    average_precision: the area under the precision-recall curve over the labelled cells of all samples
    centre_box_iou: the box IoU of a centred box of the labels' mean share of the grid, for comparison
    curve: (recall, precision) from the most confident cell on, at most a few hundred points
    """

    samples: int
    average_precision: float
    centre_box_iou: float
    thresholds: tuple[AtThreshold, ...]
    curve: tuple[tuple[float, float], ...]

    @property
    def best(self) -> AtThreshold:
        """The threshold with the highest box IoU."""
        return max(self.thresholds, key=lambda threshold: threshold.box_iou)


CURVE_POINTS = 200


def measure_quality(
    all_logits: Iterable[Float32], all_labels: Iterable[Int8], all_kept: Iterable[Bool | None] | None = None
) -> Quality:
    """Compare maps with labels.

    Args:
        all_logits: (h,w) of each sample, before the sigmoid
        all_labels: (h,w), 1 foreground, 0 background, -100 ignored; samples without foreground do not count
        all_kept: (h,w), False for sinks, which no box is drawn around, or None: there are none; None: nowhere
    Raises ValueError where no sample has any foreground.
    """
    if all_kept is None:
        samples: Iterable[tuple[Float32, Int8, Bool | None]] = zip(all_logits, all_labels, repeat(None), strict=False)
    else:
        samples = zip(all_logits, all_labels, all_kept, strict=True)
    useful = [sample for sample in samples if (sample[1] == FOREGROUND).any()]
    if not useful:
        raise ValueError("no sample has foreground to compare with")
    maps, labels = [roi_map(logits) for logits, _, _ in useful], [labels for _, labels, _ in useful]
    boxes = [_box_around(sample == FOREGROUND) for sample in labels]
    recall, precision = _curve(*(np.concatenate([cells.ravel() for cells in grids]) for grids in (maps, labels)))
    shown = np.unique(np.linspace(0, len(recall) - 1, CURVE_POINTS).astype(int))
    kept = [sample[2] for sample in useful]
    blurred = [blur(cells if own is None else cells * own) for cells, own in zip(maps, kept, strict=True)]
    return Quality(
        samples=len(labels),
        average_precision=float(np.sum(np.diff(recall, prepend=0) * precision)),
        centre_box_iou=float(np.mean(_centre_overlaps(boxes, [sample.shape for sample in labels]))),
        thresholds=tuple(_at_threshold(threshold, maps, blurred, labels, boxes) for threshold in THRESHOLDS),
        curve=tuple((float(x), float(y)) for x, y in zip(recall[shown], precision[shown], strict=True)),
    )


def _curve(strengths: Float32, labels: Int8) -> tuple[NDArray[Any], NDArray[Any]]:
    """Recall and precision of the n most confident labelled cells; equally confident cells are taken together."""
    counted = labels != IGNORED
    order = np.argsort(-strengths[counted], kind="stable")
    hits = np.cumsum(labels[counted][order] == FOREGROUND)
    ends = np.append(np.flatnonzero(np.diff(strengths[counted][order])), len(order) - 1)
    return hits[ends] / hits[-1], hits[ends] / (ends + 1)


def _at_threshold(
    threshold: float, maps: list[Float32], blurred: list[Float32], labels: Sequence[Int8], boxes: list[Box]
) -> AtThreshold:
    fired = np.concatenate([cells.ravel() for cells in maps]) > threshold
    every = np.concatenate([cells.ravel() for cells in labels])
    wanted, counted = every == FOREGROUND, every != IGNORED
    hits = int((fired & wanted).sum())
    fired_count, wanted_count = int((fired & counted).sum()), int(wanted.sum())
    overlaps = [_box_iou(_box_around(cells > threshold), box) for cells, box in zip(blurred, boxes, strict=True)]
    return AtThreshold(
        threshold,
        precision=hits / fired_count if fired_count else 1.0,
        recall=hits / wanted_count,
        cell_iou=hits / (fired_count + wanted_count - hits),
        box_iou=float(np.mean(overlaps)),
    )


def _box_around(fired: Bool) -> Box:
    """The box around cells above the threshold, in cells, upper bounds exclusive; empty where there are none."""
    rows, columns = np.flatnonzero(fired.any(axis=1)), np.flatnonzero(fired.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _box_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union else 0.0


def _centre_overlaps(boxes: list[Box], grids_hw: Sequence[tuple[int, ...]]) -> list[float]:
    """Overlaps of each box and one in the middle of its grid that takes the mean share of a grid's width and height."""
    shares = [((x2 - x1) / hw[1], (y2 - y1) / hw[0]) for (x1, y1, x2, y2), hw in zip(boxes, grids_hw, strict=True)]
    width, height = np.mean(shares, axis=0)
    return [
        _box_iou(_centre_box(width * hw[1], height * hw[0], hw), box) for box, hw in zip(boxes, grids_hw, strict=True)
    ]


def _centre_box(width: float, height: float, hw: tuple[int, ...]) -> tuple[float, float, float, float]:
    rows, columns = hw
    return (columns - width) / 2, (rows - height) / 2, (columns + width) / 2, (rows + height) / 2
