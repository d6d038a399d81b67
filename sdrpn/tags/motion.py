"""Tags that move over a background: frames of any time, with the true box of each. Pillow and NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sdrpn.tags.scene import (
    BORDERS,
    CELL_PX,
    COLOURS,
    SEEN,
    SceneStyle,
    draw_code,
    draw_plate,
    ink_on,
    render_background,
)

__all__ = ["MovingScene", "MovingTag", "moving_scene"]

Box = tuple[int, int, int, int]
LANE_CELLS = 3  # the height that a tag has for itself: tags never cover each other


@dataclass(frozen=True)
class MovingTag:
    """One plate, that goes from side to side of its lane and sways a little. Sizes in source pixels."""

    colour: str
    border: str
    shape: str
    code: str
    size_wh: tuple[int, int]
    lane_y: float  # the middle of its lane
    speed_px_s: float
    phase_px: float
    sway_px: float

    def box(self, time_s: float, side_px: int) -> Box:
        """x1, y1, x2, y2 at a time."""
        width, height = self.size_wh
        room = side_px - width - 8
        along = (self.phase_px + self.speed_px_s * time_s) % (2 * room)
        x = 4 + (along if along < room else 2 * room - along)
        y = self.lane_y - height / 2 + self.sway_px * math.sin(2 * math.pi * time_s / 4 + self.phase_px)
        return round(x), round(y), round(x) + width, round(y) + height


@dataclass(frozen=True, eq=False)
class MovingScene:
    """A background, and tags of different colours on it."""

    background: Image.Image
    tags: tuple[MovingTag, ...]

    def boxes(self, time_s: float) -> dict[str, Box]:
        """The box of every tag by its colour."""
        return {tag.colour: tag.box(time_s, self.background.width) for tag in self.tags}

    def frame(self, time_s: float) -> Image.Image:
        """The picture at a time."""
        image = self.background.copy()
        draw = ImageDraw.Draw(image)
        for tag in self.tags:
            box = tag.box(time_s, image.width)
            fill = COLOURS[tag.colour]
            draw_plate(draw, tag.shape, box, fill, BORDERS[tag.border])  # type: ignore[arg-type]
            centre = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            draw_code(draw, tag.code, "dots", centre, 31, 28, ink_on(fill))
        return image


def moving_scene(seed: int, style: SceneStyle = SEEN, *, speeds_px_s: tuple[float, float] = (60, 120)) -> MovingScene:
    """A scene in which every lane has a tag of another colour."""
    rng = np.random.default_rng(seed)
    side = style.grid_cells * CELL_PX
    background = render_background(rng, str(rng.choice(style.backgrounds)), side)
    lanes, colours = style.grid_cells // LANE_CELLS, rng.permutation(list(COLOURS))
    spans = (style.plate_w_cells, style.plate_h_cells)
    tags = []
    for lane in range(lanes):
        width, height = (round(CELL_PX * rng.uniform(*span)) for span in spans)
        sway = (LANE_CELLS * CELL_PX - height) / 2 - 4
        tags.append(
            MovingTag(
                str(colours[lane]),
                str(rng.choice(list(BORDERS))),
                str(rng.choice(style.shapes)),
                f"{rng.integers(1000):03d}",
                (width, height),
                (lane + 0.5) * LANE_CELLS * CELL_PX,
                float(rng.uniform(*speeds_px_s)),
                float(rng.uniform(0, side)),
                float(rng.uniform(0, sway)),
            )
        )
    return MovingScene(background, tuple(tags))
