"""Draw where a method looked: the whole picture, the map over it, and every crop. Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.host.sizes import text_from_number
from sdrpn.method.geometry import Seen
from sdrpn.method.grids import Box
from sdrpn.method.overlay import BOX_COLOUR, CROP_COLOUR, fitted_part, full_heat, heated, outline_box

__all__ = ["Looked", "Panel", "draw_panels", "inside"]

SIDE_PX = 800  # the longer side of every panel


@dataclass(frozen=True, eq=False)
class Looked:
    """The data to draw.

    picture: upright RGB. truth: boxes in its pixels, inside it. crops: such boxes, with the number of tokens used of
    each crop; None: all. map_over_image: (h,w) in 0..1, or None.
    """

    picture: Image.Image
    truth: Sequence[Box]
    crops: Sequence[tuple[Box, int | None]]
    map_over_image: npt.NDArray[np.float32] | None
    fit: Seen = "pad"


@dataclass(frozen=True, eq=False)
class Panel:
    """One panel. name: for a file; heat_top: the upper end of the colour scale, where there is one."""

    name: str
    caption: str
    image: Image.Image
    heat_top: float | None = None


def draw_panels(looked: Looked) -> list[Panel]:
    """Panels for the picture with its boxes, the map over it, and the crops."""
    width, height = looked.picture.size
    shown = fitted_part(looked.picture, (0, 0, width, height), (SIDE_PX, SIDE_PX))
    panels = [Panel("picture", f"The picture, {width} x {height} pixels", _boxed(shown, looked))]
    if looked.map_over_image is not None:
        panels.append(_map_panel(shown, looked, looked.map_over_image))
    return [*panels, *(_crop_panel(looked, number) for number in range(len(looked.crops)))]


def inside(box: Sequence[float], picture_wh: tuple[int, int]) -> Box | None:
    """The part of a box inside the picture; None where that is empty."""
    x1, y1, x2, y2 = (min(max(0, int(edge)), picture_wh[axis % 2]) for axis, edge in enumerate(box))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _map_panel(shown: Image.Image, looked: Looked, strength: npt.NDArray[np.float32]) -> Panel:
    # In grey, so that all colours are those of the map.
    grey = heated(shown.convert("L").convert("RGB"), strength, looked.fit)
    caption = f"What crops were chosen from: strongest cell {text_from_number(float(strength.max()), 2)}"
    return Panel("map", caption, _boxed(grey, looked), full_heat(strength))


def _crop_panel(looked: Looked, number: int) -> Panel:
    (x1, y1, x2, y2), kept = looked.crops[number]
    title = f"Crop {number + 1}" if len(looked.crops) > 1 else "Crop"
    selected = "" if kept is None else f"; {kept} of its tokens are used"
    caption = f"{title}: {x2 - x1} x {y2 - y1} pixels at {x1}, {y1}{selected}"
    return Panel(f"crop-{number + 1}", caption, fitted_part(looked.picture, (x1, y1, x2, y2), (SIDE_PX, SIDE_PX)))


def _boxed(shown: Image.Image, looked: Looked) -> Image.Image:
    boxed = shown.copy()
    scale_xy = shown.width / looked.picture.width, shown.height / looked.picture.height
    for box in looked.truth:
        outline_box(boxed, box, scale_xy, BOX_COLOUR, "")
    for number, (box, _) in enumerate(looked.crops, start=1):
        outline_box(boxed, box, scale_xy, CROP_COLOUR, str(number) if len(looked.crops) > 1 else "")
    return boxed
