"""A folder of labels that can be learned: the question names a colour, and the labels are where that colour is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from sdrpn.labels.shards import LABEL_COLUMNS, shard_path, write_shard

__all__ = ["write_labels"]

COLOURS = ((230, 20, 20), (20, 200, 40), (30, 40, 240))
SIDE_PX = 56


def write_labels(folder: Path, *, images: int = 12, grid_side: int = 4, shard: int = 8) -> Path:
    """Write pictures to `folder/images` and labels to `folder/labels`; returns the latter's path.

    Every picture has two plates of one cell, and a question about each.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    cell_px, rows = SIDE_PX // grid_side, []
    for number in range(images):
        pixels = np.full((SIDE_PX, SIDE_PX, 3), rng.integers(90, 160), np.uint8)
        places, colours = rng.permutation(grid_side**2)[:2], rng.permutation(len(COLOURS))[:2]
        for place, colour in zip(places, colours, strict=True):
            y, x = (int(at) * cell_px for at in divmod(int(place), grid_side))
            pixels[y : y + cell_px, x : x + cell_px] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        for place, colour in zip(places, colours, strict=True):
            cells = np.zeros(grid_side**2, np.int8)
            cells[place] = 1
            cells[(place + 1) % grid_side**2] = -100
            ids_after = [20, 21, *[22] * int(rng.integers(3)), 30 + int(colour), 23]
            row = {"id": f"{number}-{colour}", "image": f"{number}.png", "question": "where", "ids_before": [1, 5, 6]}
            rows.append({**row, "ids_after": ids_after, "grid_hw": [grid_side, grid_side], "cells": cells.tolist()})
    labels = folder / "labels"
    for start in range(0, len(rows), shard):
        write_shard(shard_path(labels / "labels", start // shard), LABEL_COLUMNS, rows[start : start + shard], {})
    about = {"images": str(folder / "images")}
    (labels / "labels.json").write_text(json.dumps(about), "utf-8")
    return labels
