"""Render a street as a camera would see it: large, textured, and with one small sign to read far away.

python examples/scene.py street.jpg --seed 7

Every pixel is a ray that meets the sky, the ground or a row of houses, whose colour is a formula of the place that it
meets; signs, cars, lamps and trees are drawn over that, far ones first. The same seed gives the same picture.
Lengths are metres: x to the right, y up, z away from the camera.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Floats = npt.NDArray[np.floating[Any]]

WIDTH_PX, HEIGHT_PX = 2016, 1512
# Rays per pixel on a side: edges are smoothed when the picture is scaled down.
OVERSAMPLING = 1.25

EYE_HEIGHT = 1.65
ROAD_HALF = 3.4
HOUSE_X = 6.2
STREET_END = 78.0
STOREY = 3.3
BAY = 2.3
SUN = np.array([1.0, 0.93, 0.78], np.float32)
SHADE = np.array([0.50, 0.56, 0.68], np.float32)
HAZE = np.array([0.80, 0.84, 0.88], np.float32)

SIGNS = (
    ("MILL LANE", "No. 27", "TEA & CAKE"),
    ("HARBOUR ST", "No. 114", "BOOKS"),
    ("ASH COURT", "No. 63", "BICYCLES"),
    ("CANAL ROW", "No. 8", "BAKERY"),
    ("ORCHARD WAY", "No. 92", "PHARMACY"),
    ("TANNER ST", "No. 35", "CLOCKS"),
)
WALL_COLOURS = (
    (0.62, 0.34, 0.26),
    (0.80, 0.70, 0.52),
    (0.70, 0.72, 0.70),
    (0.55, 0.42, 0.36),
    (0.84, 0.78, 0.68),
    (0.48, 0.54, 0.56),
    (0.76, 0.54, 0.40),
)
AWNING_COLOURS = ((0.62, 0.16, 0.14), (0.16, 0.36, 0.30), (0.20, 0.28, 0.46), (0.72, 0.52, 0.18))
COATS = ((92, 42, 40), (46, 60, 84), (120, 108, 88), (58, 72, 60), (70, 66, 72))
CAR_COLOURS = ((0.50, 0.08, 0.08), (0.16, 0.24, 0.38), (0.75, 0.76, 0.76), (0.14, 0.15, 0.16))


@dataclass(frozen=True)
class Scene:
    """A picture and what its sign says."""

    image: Image.Image
    sign_text: str
    sign_box_xyxy_px: tuple[int, int, int, int]


@dataclass(frozen=True)
class Camera:
    """A pinhole at the origin, `EYE_HEIGHT` above the road, looking along z."""

    width: int
    height: int
    focal: float
    centre_x: float
    horizon: float

    @classmethod
    def of_width(cls, width: int, height: int) -> Camera:
        """A camera with the view of a phone's main lens, turned a little to the left."""
        return cls(width, height, focal=0.80 * width, centre_x=0.56 * width, horizon=0.55 * height)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """The pixel of a place."""
        return self.centre_x + self.focal * x / z, self.horizon - self.focal * (y - EYE_HEIGHT) / z

    def scale(self, z: float) -> float:
        """Pixels per metre at a distance."""
        return self.focal / z


@dataclass(frozen=True)
class HouseRow:
    """Houses side by side: where each begins and ends, how high it is, its colours (n, 3)."""

    starts: Floats
    ends: Floats
    heights: Floats
    walls: Floats
    awnings: Floats

    @classmethod
    def random(cls, rng: np.random.Generator, start: float, length: float) -> HouseRow:
        """Houses of 6 to 10 m and 2 to 4 storeys from `start` on, at least `length` long."""
        widths = rng.uniform(6, 10, size=math.ceil(length / 6)).astype(np.float32)
        count = len(widths)
        walls = np.array(WALL_COLOURS, np.float32)[(rng.integers(7) + np.arange(count) * 3) % len(WALL_COLOURS)]
        awnings = np.array(AWNING_COLOURS, np.float32)[rng.integers(len(AWNING_COLOURS), size=count)]
        heights = STOREY * rng.integers(2, 5, size=count) + rng.uniform(0.6, 1.2, size=count)
        ends = start + np.cumsum(widths, dtype=np.float32)
        return cls(ends - widths, ends, heights.astype(np.float32), walls, awnings)

    def index(self, along: Floats) -> npt.NDArray[np.intp]:
        """Which house stands at a place."""
        return np.minimum(np.searchsorted(self.ends, along), len(self.ends) - 1)


def render_scene(seed: int = 0) -> Scene:
    """Render the street of a seed, `WIDTH_PX` x `HEIGHT_PX`."""
    rng = np.random.default_rng(seed)
    camera = Camera.of_width(round(WIDTH_PX * OVERSAMPLING), round(HEIGHT_PX * OVERSAMPLING))
    left, right = (HouseRow.random(rng, 1.0, STREET_END) for _ in range(2))
    end = HouseRow.random(rng, -60.0, 120.0)
    colours = trace(camera, left, right, end)
    picture = Image.fromarray((np.clip(colours, 0, 1) * 255).astype(np.uint8))
    sign = SIGNS[int(rng.integers(len(SIGNS)))]
    sign_box = draw_things(picture, camera, rng, sign)
    picture = picture.resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.LANCZOS)
    left_px, top, right_px, bottom = (round(edge / OVERSAMPLING) for edge in sign_box)
    return Scene(develop(picture, rng), " ".join(sign), (left_px, top, right_px, bottom))


def trace(camera: Camera, left: HouseRow, right: HouseRow, end: HouseRow) -> Floats:
    """Follow the ray of every pixel to what it meets first. Returns (height, width, 3), 0..1."""
    u = (np.arange(camera.width, dtype=np.float32) - camera.centre_x + 0.5) / camera.focal
    v = (camera.horizon - np.arange(camera.height, dtype=np.float32) + 0.5) / camera.focal
    right_of, up = np.meshgrid(u, v)
    # Distances along z at which the ray meets each plane; the end of the street stops all.
    with np.errstate(divide="ignore"):
        z_wall = HOUSE_X / np.abs(right_of)
        z_ground = np.where(up < 0, EYE_HEIGHT / -up, np.inf)
    z = np.minimum(np.minimum(z_wall, z_ground), STREET_END).astype(np.float32)
    x, y = right_of * z, EYE_HEIGHT + up * z
    colours = np.empty((*z.shape, 3), np.float32)
    free = z_ground > z
    colours[~free] = ground(x[~free], z[~free], left)
    for row, side in ((left, right_of < 0), (right, right_of >= 0)):
        hit = free & side & (z_wall <= z) & (y < row.heights[row.index(z)])
        colours[hit] = facade(row, z[hit], y[hit], z[hit], lit=row is right, salt=1 + (row is right))
        free &= ~hit
        paint_gables(colours, free, row, np.where(side, np.abs(right_of), 0), up)
    hit = free & (z >= STREET_END) & (y < end.heights[end.index(x)])
    colours[hit] = facade(end, x[hit], y[hit], z[hit], lit=False, salt=3)
    free &= ~hit
    colours[free] = sky(right_of[free], up[free])
    return colours


def paint_gables(colours: Floats, free: npt.NDArray[np.bool_], row: HouseRow, aside: Floats, up: Floats) -> None:
    """Paint the bare side walls of houses that stand higher than those before them, where the ray is still free."""
    for house in range(len(row.ends)):
        z = np.float32(row.starts[house])
        x, y = aside * z, EYE_HEIGHT + up * z
        hit = free & (x > HOUSE_X) & (x < HOUSE_X + 9) & (y < row.heights[house]) & (y > 0)
        depth, height = x[hit] - HOUSE_X, y[hit]
        wall = brick(np.broadcast_to(row.walls[house], (len(depth), 3)), depth, height, np.full_like(depth, z), salt=4)
        cornice = (row.heights[house] - height < 0.45)[:, None]
        wall = np.where(cornice, wall * 0.35 + 0.42, wall * 0.9)
        colours[hit] = hazed(wall * light(np.zeros_like(depth)), np.full_like(depth, z))
        free &= ~hit


def sky(right_of: Floats, up: Floats) -> Floats:
    """Pale at the horizon, blue above, with thin clouds. (n,) -> (n, 3)."""
    height = np.clip(up * 1.5, 0, 1)[..., None]
    blue = (1 - height) * np.array([0.88, 0.91, 0.93], np.float32) + height * np.array([0.42, 0.60, 0.83], np.float32)
    # Clouds are stretched towards the horizon, as a flat layer seen from below is.
    depth = 1 / np.maximum(up, 0.05)
    cloud = smooth_noise(right_of * depth * 1.3, depth * 2.1, salt=11, octaves=5)
    amount = np.clip((cloud - 0.48) * 2.6, 0, 0.85)[..., None]
    return np.asarray(blue * (1 - amount) + np.array([0.95, 0.95, 0.95], np.float32) * amount, np.float32)


def ground(x: Floats, z: Floats, left: HouseRow) -> Floats:
    """Road, kerbs, pavement and crossing, with the shadow of the houses on the left. (n,) -> (n, 3)."""
    detail = fade(z, 30)
    on_road = np.abs(x) < ROAD_HALF
    grain = hashed(np.floor(x * 90), np.floor(z * 90), salt=21)
    stains = smooth_noise(x * 0.9, z * 0.35, salt=22, octaves=4)
    asphalt = 0.30 + 0.10 * (stains - 0.5) + 0.13 * (grain - 0.5) * detail
    slab = hashed(np.floor(x / 0.6), np.floor(z / 0.6), salt=23)
    joint = (np.mod(x, 0.6) < 0.025) | (np.mod(z, 0.6) < 0.025)
    paving = 0.56 + 0.09 * (slab - 0.5) * fade(z, 50) + 0.12 * (stains - 0.5) + 0.06 * (grain - 0.5) * detail
    paving = np.where(joint, paving * (1 - 0.35 * fade(z, 45)), paving)
    grey = np.where(on_road, asphalt, paving)
    worn = smooth_noise(x * 3, z * 3, salt=24, octaves=3) > 0.36
    dashes = (np.abs(x) < 0.07) & (np.mod(z, 5.0) < 2.4) & (np.abs(z - 15.5) > 2.6)
    crossing = (np.abs(z - 15.5) < 1.4) & (np.mod(x + 0.25, 1.0) < 0.5)
    grey = np.where(on_road & worn & (dashes | crossing), 0.78 + 0.08 * (grain - 0.5), grey)
    kerb = (np.abs(np.abs(x) - ROAD_HALF) < 0.10) & (np.mod(z, 1.0) > 0.02)
    grey = np.where(kerb, 0.63 + 0.08 * (slab - 0.5), grey)
    gutter = np.exp(-(((np.abs(x) - ROAD_HALF + 0.22) / 0.12) ** 2)) * on_road
    at_wall = np.exp(-(HOUSE_X - np.abs(x)) / 0.5)
    grey = grey * (1 - 0.30 * gutter) * (1 - 0.35 * at_wall)
    colours = grey[:, None] * np.array([1.0, 0.985, 0.95], np.float32)
    # The sun stands to the left behind us: a house throws its shadow to the right and away.
    shadow_end = -HOUSE_X + 0.62 * left.heights[left.index(z - 3.0)]
    return hazed(colours * light(soft_step(x - shadow_end, 0.12)), z)


def facade(row: HouseRow, along: Floats, y: Floats, z: Floats, *, lit: bool, salt: int) -> Floats:
    """Walls with windows above and shops at street level. (n,) -> (n, 3)."""
    house = row.index(along)
    within = along - row.starts[house]
    width = row.ends[house] - row.starts[house]
    # As many windows as fit, in the middle of the house.
    margin = (width - BAY * np.floor((width - 0.6) / BAY)) / 2
    bay = (within - margin) / BAY
    in_bays = (within > margin) & (width - within > margin)
    wall = brick(row.walls[house], along, y, z, salt)
    storey, column = np.floor(y / STOREY), np.floor(bay)
    within_x, within_y = BAY * (bay - column - 0.5), np.mod(y, STOREY) - 1.75
    from_roof = row.heights[house] - y
    upper = (storey >= 1) & (from_roof > 1.2) & in_bays
    pane = upper & (np.abs(within_x) < 0.50) & (np.abs(within_y) < 0.80)
    frame = upper & (np.abs(within_x) < 0.60) & (np.abs(within_y) < 0.90) & ~pane
    bars = pane & ((np.abs(within_x) < 0.04) | (np.abs(within_y - 0.15) < 0.04))
    sill = upper & (np.abs(within_x) < 0.70) & (np.abs(within_y + 0.96) < 0.07)
    window = glass(column + 17 * house, storey, within_x, within_y, salt)
    colours = np.where(pane[:, None], window, wall)
    colours = np.where((frame | bars | sill)[:, None], np.float32(0.82), colours)
    lintel_shadow = upper & (np.abs(within_x) < 0.5) & (within_y > 0.62) & (within_y < 0.8)
    colours = np.where(lintel_shadow[:, None], colours * 0.55, colours)
    colours = np.where((y < STOREY - 0.2)[:, None], shop(row, house, within, y, wall, salt), colours)
    cornice = (from_roof < 0.45) | (np.abs(y - STOREY) < 0.13)
    colours = np.where(cornice[:, None], wall * 0.35 + 0.42, colours)
    below_cornice = np.exp(-np.maximum(from_roof - 0.45, 0) / 0.35) * (from_roof > 0.45)
    seam = np.exp(-np.minimum(within, width - within) / 0.10)
    colours = colours * (1 - 0.45 * below_cornice - 0.35 * seam)[:, None]
    # The further up between the houses, the more of the sky a wall sees.
    sky_share = 0.78 + 0.22 * np.clip(y / 9, 0, 1)
    sun = np.full_like(y, 0.0) if not lit else soft_step(y - 1.6 - 0.02 * z, 0.3)
    return hazed(colours * light(sun) * sky_share[:, None], z)


def brick(colours: Floats, along: Floats, y: Floats, z: Floats, salt: int) -> Floats:
    """Courses of brick in the house's colour, weathered. (n, 3), (n,) -> (n, 3)."""
    course = np.floor(y / 0.085)
    offset = along + 0.125 * np.mod(course, 2)
    tone = hashed(np.floor(offset / 0.25), course, salt)
    mortar = (np.mod(y, 0.085) < 0.014) | (np.mod(offset, 0.25) < 0.014)
    detail = fade(z, 16)
    weather = smooth_noise(along * 0.7, y * 0.5, salt + 5, octaves=4) - 0.5
    shade = 1 + 0.30 * (tone - 0.5) * detail + 0.35 * weather + 0.18 * mortar * detail
    return np.asarray(colours * shade[:, None], np.float32)


def glass(column: Floats, storey: Floats, within_x: Floats, within_y: Floats, salt: int) -> Floats:
    """A window: the sky's reflection over a dark room, now and then a curtain. (n,) -> (n, 3)."""
    chance = hashed(column, storey, salt + 7)
    reflection = np.clip(0.30 + 0.28 * within_y + 0.25 * within_x, 0.03, 1) * (0.35 + 0.75 * chance)
    colours = reflection[:, None] * np.array([0.72, 0.84, 1.0], np.float32) + 0.05
    curtain = (chance > 0.55) & (np.abs(within_x) > 0.30)
    folds = 0.52 + 0.10 * np.sin(within_x * 60)
    return np.where(curtain[:, None], folds[:, None] * np.array([1, 0.95, 0.85], np.float32), colours).astype(
        np.float32
    )


def shop(row: HouseRow, house: npt.NDArray[np.intp], within: Floats, y: Floats, wall: Floats, salt: int) -> Floats:
    """A shop front: plinth, display, door, and an awning above. (n,) -> (n, 3)."""
    bay = np.mod(within, 2.6)
    display = (bay > 0.2) & (bay < 2.4) & (y > 0.55) & (y < 2.35)
    goods = hashed(np.floor(within * 4), np.floor(y * 5) + 31 * house, salt + 9)
    glow = 0.22 + 0.26 * np.clip((y - 0.5) / 1.6, 0, 1)
    warm = np.stack([glow + 0.20 * goods, glow * 0.92 + 0.14 * goods, glow * 0.76 + 0.06 * goods], axis=1)
    shelf = np.mod(y, 0.6) < 0.05
    inside = np.where(shelf[:, None], warm * 0.5, warm)
    colours = np.where(display[:, None], inside, wall * 0.55)
    door = display & (np.mod(np.floor(within / 2.6), 3) == 1)
    panels = door & ((bay < 0.75) | (bay > 1.85))
    colours = np.where(panels[:, None], row.awnings[house] * 0.7, colours)
    awning = (y >= 2.35) & (y < 2.95)
    stripes = np.where(np.mod(within, 0.7) < 0.35, 1.0, 0.0)[:, None]
    cloth = row.awnings[house] * (1 - 0.75 * stripes) + 0.72 * 0.75 * stripes
    cloth = cloth * (0.75 + 0.5 * (y - 2.35) / 0.6)[:, None]
    return np.where(awning[:, None], cloth, colours).astype(np.float32)


def draw_things(
    picture: Image.Image, camera: Camera, rng: np.random.Generator, sign: tuple[str, str, str]
) -> tuple[float, float, float, float]:
    """Draw what stands in the street, far things first. Returns the box of the sign, xyxy in pixels."""
    draw = ImageDraw.Draw(picture)
    for z in (62.0, 50.0):
        draw_tree(picture, camera, rng, x=4.6, z=z)
        draw_lamp(draw, camera, x=-4.1, z=z - 4)
    for z in (44.0, 36.0):
        draw_car(picture, camera, x=2.35, z=z, colour=CAR_COLOURS[int(rng.integers(4))])
    draw_tree(picture, camera, rng, x=4.7, z=34.0)
    box = draw_sign(picture, camera, rng, sign)
    for x, z in ((-4.9, 30.0), (-4.4, 29.4), (4.4, 24.0)):
        draw_person(picture, camera, rng, x, z)
    draw_lamp(draw, camera, x=-4.1, z=17.0)
    draw_car(picture, camera, x=2.4, z=19.5, colour=CAR_COLOURS[int(rng.integers(4))])
    return box


def draw_sign(
    picture: Image.Image, camera: Camera, rng: np.random.Generator, lines: tuple[str, str, str]
) -> tuple[float, float, float, float]:
    """Hang a board from the houses on the left, facing the camera: its letters are about 12 pixels high."""
    z, width, height = 27.0, 1.75, 1.15
    x = -5.0 + 0.5 * rng.random()
    left, top = camera.project(x - width / 2, 4.05, z)
    right, bottom = camera.project(x + width / 2, 4.05 - height, z)
    scale = 8
    board = Image.new("RGB", (round(right - left) * scale, round(bottom - top) * scale), (30, 62, 52))
    draw = ImageDraw.Draw(board)
    inset = board.height // 24
    edge = (inset, inset, board.width - inset, board.height - inset)
    draw.rounded_rectangle(edge, radius=3 * inset, outline=(214, 190, 120), width=inset)
    for line, centre, share in zip(lines, (0.24, 0.51, 0.78), (0.86, 0.5, 0.86), strict=True):
        font = fitting_font(line, share * board.width, 0.27 * board.height)
        draw.text((board.width / 2, centre * board.height), line, (240, 234, 214), font, anchor="mm")
    draw = ImageDraw.Draw(picture)
    arm = camera.project(-HOUSE_X, 4.15, z)
    thickness = max(1, round(0.06 * camera.scale(z)))
    draw.line((*arm, right, arm[1]), fill=(28, 28, 30), width=thickness)
    for hook in (left + 0.1 * (right - left), right - 0.1 * (right - left)):
        draw.line((hook, arm[1], hook, top), fill=(28, 28, 30), width=thickness)
    small = board.resize((round(right - left), round(bottom - top)), Image.Resampling.LANCZOS)
    picture.paste(small, (round(left), round(top)))
    return left, top, right, bottom


def fitting_font(text: str, width: float, height: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, as large as the space allows."""
    size = height
    font = default_font(size)
    needed = font.getlength(text)
    return font if needed <= width else default_font(size * width / needed)


def default_font(size: float) -> ImageFont.FreeTypeFont:
    """The font that Pillow ships."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType and has no scalable font; install a wheel of Pillow")
    return font


def draw_lamp(draw: ImageDraw.ImageDraw, camera: Camera, x: float, z: float) -> None:
    """A post with a lantern."""
    foot, head = camera.project(x, 0, z), camera.project(x, 4.6, z)
    unit = camera.scale(z)
    draw.line((*foot, *head), fill=(38, 42, 44), width=max(1, round(0.11 * unit)))
    draw.rectangle((foot[0] - 0.13 * unit, foot[1] - 0.7 * unit, foot[0] + 0.13 * unit, foot[1]), fill=(34, 38, 40))
    x0, y0 = head
    lantern = [(x0 - 0.24 * unit, y0), (x0 + 0.24 * unit, y0), (x0 + 0.15 * unit, y0 + 0.5 * unit)]
    lantern.append((x0 - 0.15 * unit, y0 + 0.5 * unit))
    draw.polygon(lantern, fill=(206, 202, 184), outline=(38, 42, 44))
    roof = [(x0 - 0.30 * unit, y0), (x0 + 0.30 * unit, y0), (x0, y0 - 0.26 * unit)]
    draw.polygon(roof, fill=(38, 42, 44))


def draw_tree(picture: Image.Image, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """A trunk and a crown of many small leaves, lit from the upper left."""
    draw = ImageDraw.Draw(picture)
    unit = camera.scale(z)
    foot, fork = camera.project(x, 0, z), camera.project(x, 2.6, z)
    draw.line((*foot, *fork), fill=(70, 58, 48), width=max(2, round(0.24 * unit)))
    count = 1400
    angle, radius = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0, 1, count))
    bumps = 1 + 0.14 * np.sin(5 * angle + z) + 0.08 * np.sin(11 * angle)
    across, above = radius * bumps * np.cos(angle), radius * bumps * np.sin(angle)
    order = np.argsort(above + rng.normal(0, 0.5, count))
    for i in order:
        brightness = 0.45 + 0.30 * (above[i] - 0.5 * across[i]) + 0.16 * rng.random()
        centre = (foot[0] + 1.7 * unit * across[i], fork[1] - unit * (1.3 + 1.9 * above[i]))
        size = unit * (0.07 + 0.10 * rng.random())
        colour = tuple(int(255 * np.clip(c * brightness, 0, 1)) for c in (0.62, 0.80, 0.34))
        draw.ellipse((centre[0] - size, centre[1] - size, centre[0] + size, centre[1] + size), fill=colour)


def draw_person(picture: Image.Image, camera: Camera, rng: np.random.Generator, x: float, z: float) -> None:
    """Someone walking away."""
    unit = camera.scale(z)
    foot = camera.project(x, 0, z)
    soft_shadow(picture, (foot[0], foot[1]), (0.5 * unit, 0.10 * unit), 0.45)
    draw = ImageDraw.Draw(picture)

    def part(left: float, top: float, right: float, bottom: float, colour: tuple[int, int, int]) -> None:
        box = (foot[0] + left * unit, foot[1] - top * unit, foot[0] + right * unit, foot[1] - bottom * unit)
        draw.rounded_rectangle(box, radius=0.08 * unit, fill=colour)

    red, green, blue = COATS[int(rng.integers(len(COATS)))]
    coat, sleeve, trousers = (red, green, blue), (red * 4 // 5, green * 4 // 5, blue * 4 // 5), (44, 46, 56)
    part(-0.17, 0.85, -0.01, 0.0, trousers)
    part(0.02, 0.85, 0.17, 0.06, trousers)
    part(-0.24, 1.48, 0.24, 0.72, coat)
    part(-0.31, 1.42, -0.20, 0.85, sleeve)
    part(0.20, 1.42, 0.31, 0.85, sleeve)
    part(-0.09, 1.56, 0.09, 1.44, (150, 112, 92))
    part(-0.12, 1.78, 0.12, 1.52, (58, 44, 36))


def draw_car(picture: Image.Image, camera: Camera, x: float, z: float, colour: tuple[float, float, float]) -> None:
    """A parked car from behind: its side is seen towards the middle of the street."""
    unit = camera.scale(z)
    foot = camera.project(x, 0, z)
    soft_shadow(picture, (foot[0], foot[1]), (1.25 * unit, 0.26 * unit), 0.7)
    draw = ImageDraw.Draw(picture)

    def shade(amount: float) -> tuple[int, int, int]:
        red, green, blue = (round(255 * min(1.0, c * amount)) for c in colour)
        return red, green, blue

    def at(dx: float, y: float, dz: float) -> tuple[float, float]:
        return camera.project(x + dx, y, z + dz)

    body = [at(-0.88, 0.28, 0), at(-0.88, 0.28, 4.2), at(-0.88, 0.86, 4.2), at(-0.88, 0.92, 0)]
    cabin = [at(-0.88, 0.88, 0.3), at(-0.70, 1.44, 0.8), at(-0.70, 1.44, 2.3), at(-0.88, 0.88, 3.2)]
    draw.polygon(body, fill=shade(0.72))
    draw.polygon(cabin, fill=(48, 56, 64))
    for dz in (0.75, 3.35):
        centre, wheel = at(-0.89, 0.31, dz), 0.31 * camera.scale(z + dz)
        draw.ellipse(
            (centre[0] - 0.4 * wheel, centre[1] - wheel, centre[0] + 0.4 * wheel, centre[1] + wheel), (22, 22, 24)
        )
    draw.polygon(
        [at(-0.70, 1.44, 0.8), at(0.70, 1.44, 0.8), at(0.70, 1.44, 2.3), at(-0.70, 1.44, 2.3)], fill=shade(1.5)
    )
    draw.polygon([at(-0.88, 0.90, 0), at(-0.70, 1.44, 0.8), at(0.70, 1.44, 0.8), at(0.88, 0.90, 0)], fill=shade(1.2))
    draw.polygon(
        [at(-0.74, 0.97, 0.1), at(-0.60, 1.38, 0.7), at(0.60, 1.38, 0.7), at(0.74, 0.97, 0.1)], fill=(66, 80, 92)
    )
    for side in (-0.66, 0.66):
        wheel_left, wheel_right = at(side - 0.12, 0.32, 0.1), at(side + 0.12, 0.0, 0.1)
        draw.rectangle((*wheel_left, *wheel_right), fill=(20, 20, 22))
    draw.rounded_rectangle((*at(-0.90, 0.95, 0), *at(0.90, 0.24, 0)), radius=0.10 * unit, fill=shade(1.0))
    draw.rectangle((*at(-0.86, 0.42, 0), *at(0.86, 0.28, 0)), fill=shade(0.5))
    for side in (-0.70, 0.70):
        draw.rectangle((*at(side - 0.14, 0.86, 0), *at(side + 0.14, 0.68, 0)), fill=(168, 26, 22))
    draw.rectangle((*at(-0.27, 0.66, 0), *at(0.27, 0.52, 0)), fill=(226, 222, 200))


def soft_shadow(picture: Image.Image, centre: tuple[float, float], radii: tuple[float, float], strength: float) -> None:
    """Darken an ellipse with a soft border."""
    width, height = math.ceil(radii[0] * 3), math.ceil(radii[1] * 4)
    mask = Image.new("L", (2 * width, 2 * height), 0)
    box = (width - radii[0], height - radii[1], width + radii[0], height + radii[1])
    ImageDraw.Draw(mask).ellipse(box, fill=round(255 * strength))
    mask = mask.filter(ImageFilter.GaussianBlur(max(1.0, radii[1] * 0.5)))
    picture.paste((18, 20, 26), (round(centre[0]) - width, round(centre[1]) - height), mask)


def develop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What lens and sensor add: a little blur, darker corners, contrast and noise."""
    soft = picture.filter(ImageFilter.GaussianBlur(0.6))
    colours = np.asarray(soft, np.float32) / 255
    rows, columns = np.mgrid[-1 : 1 : HEIGHT_PX * 1j, -1 : 1 : WIDTH_PX * 1j].astype(np.float32)
    colours *= (1 - 0.20 * (rows**2 + columns**2) ** 1.2 / 2.3)[..., None]
    colours = colours + 0.10 * (colours - 0.5) * (1 - np.abs(2 * colours - 1))
    # Brighter places are noisier, as photons are counted; the eye sees it in the dark ones.
    noise = rng.standard_normal(colours.shape, dtype=np.float32) * (0.008 + 0.012 * np.sqrt(np.clip(colours, 0, 1)))
    return Image.fromarray((np.clip(colours + noise, 0, 1) * 255 + 0.5).astype(np.uint8))


def light(sun: Floats) -> Floats:
    """The light at places with this share of the sun. (n,) -> (n, 3)."""
    return (SHADE + sun[:, None] * (1.12 * SUN - SHADE)).astype(np.float32)


def hazed(colours: Floats, z: Floats) -> Floats:
    """Far things take on the colour of the air."""
    share = (1 - np.exp(-z / 160))[:, None].astype(np.float32)
    return (colours * (1 - share) + HAZE * share).astype(np.float32)


def fade(z: Floats, distance: float) -> Floats:
    """1 near, 0 where detail would be finer than a pixel and only flicker."""
    return np.asarray(np.exp(-((z / distance) ** 2)), np.float32)


def soft_step(value: Floats, width: float) -> Floats:
    """0 below, 1 above, with a border of about `width`."""
    return np.asarray(0.5 + 0.5 * np.tanh(value / width), np.float32)


def hashed(i: Floats, j: Floats, salt: int) -> Floats:
    """A number in 0..1 for every pair of whole numbers, the same on every machine."""
    mixed = i.astype(np.int64) * 73856093 ^ j.astype(np.int64) * 19349663 ^ (salt * 83492791)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 & 0x7FFFFFFF
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).astype(np.float32) / 0xFFFF


def smooth_noise(x: Floats, y: Floats, salt: int, octaves: int) -> Floats:
    """Value noise in 0..1: random at whole places, smooth between, each octave half as large."""
    total, amplitude = np.zeros_like(x, dtype=np.float32), 0.5
    for octave in range(octaves):
        i, j = np.floor(x), np.floor(y)
        s, t = x - i, y - j
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        low = hashed(i, j, salt + octave) * (1 - s) + hashed(i + 1, j, salt + octave) * s
        high = hashed(i, j + 1, salt + octave) * (1 - s) + hashed(i + 1, j + 1, salt + octave) * s
        total += amplitude * (low * (1 - t) + high * t)
        x, y, amplitude = x * 2, y * 2, amplitude / 2
    return (total / (1 - 0.5**octaves)).astype(np.float32)


def main() -> int:
    """Write one picture."""
    parser = argparse.ArgumentParser(description="Render a street with one small sign far away.")
    parser.add_argument("out", metavar="OUT.jpg", type=Path)
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="which street (default: 0)")
    args = parser.parse_args()
    scene = render_scene(args.seed)
    scene.image.save(args.out, quality=88)
    print(f"{args.out}: the sign at {scene.sign_box_xyxy_px} says {scene.sign_text!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
