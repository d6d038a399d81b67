"""A page to look at what was labelled: counts, and a contact sheet of overlays. Pillow and NumPy only."""

from __future__ import annotations

import dataclasses
import html
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sdrpn.atomic import replacing_file
from sdrpn.geometry import Fit
from sdrpn.image import open_image
from sdrpn.labels.denoise import BACKGROUND, FOREGROUND
from sdrpn.labels.labelling import LABELS, Counts
from sdrpn.labels.shards import read_shards

__all__ = ["contact_sheet", "overlay_labels", "write_report"]

SAMPLES = 24
COLUMNS = 6
SIDE_PX, CAPTION_PX, MARGIN_PX = 192, 20, 8
PAGE, TEXT = (24, 25, 28), (222, 224, 228)
COLOURS = {FOREGROUND: (90, 230, 110), BACKGROUND: (60, 90, 200)}
OPACITY = 0.45
STYLE = "body{font:16px sans-serif;margin:2em;max-width:80em}td,th{text-align:left;padding:.2em 1em .2em 0}"


def write_report(out: Path, images: Path, counts: Counts, provenance: dict[str, Any]) -> None:
    """Write `report.html` and `samples.png` into a label folder."""
    samples = [
        (open_image(images / row["image"]), np.array(row["cells"], np.int8), row["question"])
        for row in islice(read_shards(out / LABELS), SAMPLES)
    ]
    with replacing_file(out / "samples.png") as path:
        contact_sheet(samples, provenance.get("fit", "pad")).save(path, "PNG")
    with replacing_file(out / "report.html") as path:
        path.write_text(_page(counts, provenance), "utf-8")


def contact_sheet(samples: list[tuple[Image.Image, NDArray[np.int8], str]], fit: Fit = "pad") -> Image.Image:
    """Pictures with their labels (G*G) and questions, in rows."""
    rows = max(1, -(-len(samples) // COLUMNS))
    step_x, step_y = SIDE_PX + MARGIN_PX, SIDE_PX + CAPTION_PX + MARGIN_PX
    sheet = Image.new("RGB", (COLUMNS * step_x + MARGIN_PX, rows * step_y + MARGIN_PX), PAGE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (picture, cells, question) in enumerate(samples):
        x, y = MARGIN_PX + number % COLUMNS * step_x, MARGIN_PX + number // COLUMNS * step_y
        sheet.paste(overlay_labels(picture, cells, SIDE_PX, fit), (x, y))
        draw.text((x, y + SIDE_PX + 3), " ".join(question.split())[:32], TEXT, font)
    return sheet


def overlay_labels(picture: Image.Image, cells: NDArray[np.int8], side_px: int, fit: Fit = "pad") -> Image.Image:
    """The picture as a square under its labels (G*G): foreground green, background blue, ignored clear."""
    scale = side_px / (max if fit == "pad" else min)(picture.size)
    shown = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    square = Image.new("RGB", (side_px, side_px), PAGE)
    square.paste(shown, ((side_px - shown.width) // 2, (side_px - shown.height) // 2))
    grid_side = round(cells.size**0.5)
    place = np.arange(side_px) * grid_side // side_px
    label = cells.reshape(grid_side, grid_side)[np.ix_(place, place)]
    pixels = np.asarray(square, np.float32).copy()
    for value, colour in COLOURS.items():
        fired = label == value
        pixels[fired] = (1 - OPACITY) * pixels[fired] + OPACITY * np.array(colour, np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def _page(counts: Counts, provenance: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{name.replace('_', ' ')}</td><td>{value:,}</td></tr>"
        for name, value in dataclasses.asdict(counts).items()
    )
    details = html.escape(json.dumps(provenance, indent=1))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Pseudo-labels</title><style>{STYLE}</style>'
        f"<h1>Pseudo-labels</h1><table>{rows}</table>"
        f"<p>The first {SAMPLES} labelled samples: foreground green, background blue, ignored clear.</p>"
        f'<img src="samples.png" alt="labelled samples"><h2>Made from</h2><pre>{details}</pre></html>\n'
    )
