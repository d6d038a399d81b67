"""One scene: a background, distractors and tags. NumPy and Pillow only; knows no questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sdrpn.tags.glyphs import SEEN_FACES, SHIFTED_FACES, Face, draw_digit

__all__ = [
    "BORDERS",
    "CELL_PX",
    "COLOURS",
    "MIXED",
    "SEEN",
    "SHAPES",
    "SHIFTED",
    "Digit",
    "Scene",
    "SceneStyle",
    "Tag",
    "draw_plate",
    "render_background",
    "render_scene",
]

Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in source pixels
Shape = Literal["rectangle", "hexagon", "arrow", "ticket", "round", "pill"]

CELL_PX = 70  # source pixels per cell of the model's 12 x 12 grid over 840 px

COLOURS: dict[str, Colour] = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (240, 220, 40),
    "green": (30, 150, 50),
    "cyan": (50, 200, 215),
    "blue": (35, 70, 200),
    "purple": (130, 45, 165),
    "pink": (245, 130, 185),
}
BORDERS: dict[str, Colour] = {
    "black": (10, 10, 10),
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "brown": (115, 65, 25),
}
SHAPES: tuple[Shape, ...] = ("rectangle", "hexagon", "arrow", "ticket")


@dataclass(frozen=True)
class SceneStyle:
    """The distribution that scenes are drawn from. Sizes in cells of `CELL_PX`, digit heights in source pixels."""

    faces: tuple[Face, ...] = SEEN_FACES
    shapes: tuple[Shape, ...] = SHAPES
    backgrounds: tuple[str, ...] = ("smooth", "stripes", "blocks", "gradient")
    grid_cells: int = 12
    tags: tuple[int, int] = (3, 6)
    plate_w_cells: tuple[float, float] = (1.6, 2.4)
    plate_h_cells: tuple[float, float] = (1.2, 1.8)
    cap_px: tuple[float, float] = (28, 34)
    advance_px: tuple[float, float] = (26, 31)
    large: tuple[int, int] = (0, 0)  # how many further tags are so large that one look can read them
    large_scale: tuple[float, float] = (2.6, 3.4)  # how many times larger their plates and codes are


SEEN = SceneStyle()
# One or two codes that one look can read beside several that it cannot.
MIXED = SceneStyle(tags=(2, 4), large=(1, 2))
SHIFTED = SceneStyle(faces=SHIFTED_FACES, shapes=("round", "pill"), backgrounds=("checks", "speckle"))


@dataclass(frozen=True)
class Digit:
    """One digit of a code, and its centre in source pixels."""

    value: int
    centre_xy: tuple[float, float]


@dataclass(frozen=True)
class Tag:
    """One plate with a three-digit code."""

    colour: str
    border: str
    shape: Shape
    box_xyxy_px: tuple[int, int, int, int]
    digits: tuple[Digit, ...]
    scale: float = 1.0  # 1: a small one, which one look cannot read

    @property
    def code(self) -> str:
        """The code as text, three digits."""
        return "".join(str(digit.value) for digit in self.digits)


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it."""

    image: Image.Image
    tags: tuple[Tag, ...]


def render_scene(rng: np.random.Generator, style: SceneStyle, codes: tuple[str, ...]) -> Scene:
    """Render one scene.

    Args:
        codes: the codes to draw from, three digits each
    """
    side = style.grid_cells * CELL_PX
    image = render_background(rng, str(rng.choice(style.backgrounds)), side)
    draw = ImageDraw.Draw(image)
    placed = _large_boxes(rng, style, side)
    placed += [(box, 1.0) for box in _free_boxes(rng, style, side, [box for box, _ in placed])]
    _draw_distractors(rng, draw, side)
    names = rng.permutation(list(COLOURS))
    tags = tuple(
        _draw_tag(rng, draw, style, box, str(colour), codes[rng.integers(len(codes))], scale)
        for (box, scale), colour in zip(placed, names, strict=False)
    )
    return Scene(image, tags)


def _large_boxes(rng: np.random.Generator, style: SceneStyle, side: int) -> list[tuple[Box, float]]:
    """The boxes of the large tags, each with how many times larger it is; at least one where the style has them."""
    placed: list[tuple[Box, float]] = []
    if not style.large[1]:
        return placed
    wanted = int(rng.integers(style.large[0], style.large[1] + 1))
    for _ in range(60):
        scale = float(rng.uniform(*style.large_scale))
        box = _drawn_box(rng, style, side, scale)
        if all(_apart(box, other, CELL_PX // 4) for other, _ in placed):
            placed.append((box, scale))
        if len(placed) == wanted:
            break
    return placed


def _drawn_box(rng: np.random.Generator, style: SceneStyle, side: int, scale: float) -> Box:
    spans = (style.plate_w_cells, style.plate_h_cells)
    width, height = (round(CELL_PX * scale * rng.uniform(*span)) for span in spans)
    x, y = (int(rng.integers(4, side - size - 4)) for size in (width, height))
    return x, y, x + width, y + height


def _free_boxes(rng: np.random.Generator, style: SceneStyle, side: int, taken: Sequence[Box]) -> list[Box]:
    """At least one box; boxes touch neither each other nor those that are taken nor the border."""
    boxes: list[Box] = []
    wanted = int(rng.integers(style.tags[0], style.tags[1] + 1))
    gap = CELL_PX // 4
    for _ in range(60):
        box = _drawn_box(rng, style, side, 1.0)
        if all(_apart(box, other, gap) for other in (*taken, *boxes)):
            boxes.append(box)
        if len(boxes) == wanted:
            break
    return boxes


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int) -> bool:
    return a[2] + gap < b[0] or b[2] + gap < a[0] or a[3] + gap < b[1] or b[3] + gap < a[1]


def _draw_tag(
    rng: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    style: SceneStyle,
    box: tuple[int, int, int, int],
    colour: str,
    code: str,
    scale: float,
) -> Tag:
    border = str(rng.choice(list(BORDERS)))
    shape: Shape = style.shapes[rng.integers(len(style.shapes))]
    fill = _jittered(rng, COLOURS[colour])
    draw_plate(draw, shape, box, fill, BORDERS[border])
    cap, advance = scale * rng.uniform(*style.cap_px), scale * rng.uniform(*style.advance_px)
    face: Face = style.faces[rng.integers(len(style.faces))]
    centre = _code_centre(rng, box, cap, advance)
    digits = draw_code(draw, code, face, centre, cap, advance, ink_on(fill))
    return Tag(colour, border, shape, box, digits, scale)


def _code_centre(
    rng: np.random.Generator, box: tuple[int, int, int, int], cap: float, advance: float
) -> tuple[float, float]:
    """The centre of the code: near the middle of the plate, and never over its border."""
    x1, y1, x2, y2 = box
    slack_x = max(0.0, (x2 - x1) * 0.36 - 1.5 * advance)
    slack_y = max(0.0, (y2 - y1) * 0.36 - 0.5 * cap)
    return (x1 + x2) / 2 + rng.uniform(-slack_x, slack_x), (y1 + y2) / 2 + rng.uniform(-slack_y, slack_y)


def draw_code(
    draw: ImageDraw.ImageDraw,
    code: str,
    face: Face,
    centre_xy: tuple[float, float],
    cap_px: float,
    advance_px: float,
    ink: Colour,
) -> tuple[Digit, ...]:
    """Draw a code digit by digit, with `advance_px` between their centres."""
    digits = []
    for place, digit in enumerate(code):
        centre = (centre_xy[0] + (place - (len(code) - 1) / 2) * advance_px, centre_xy[1])
        draw_digit(draw, digit, face, centre, cap_px, ink)
        digits.append(Digit(int(digit), centre))
    return tuple(digits)


def ink_on(fill: Colour) -> Colour:
    """Black or white, whichever is easier to read."""
    light = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2]
    return (15, 15, 15) if light > 115 else (245, 245, 245)


def draw_plate(
    draw: ImageDraw.ImageDraw, shape: Shape, box: tuple[int, int, int, int], fill: Colour, border: Colour
) -> None:
    """Draw a filled outline with a border of a twelfth of its height."""
    width = max(2, (box[3] - box[1]) // 12)
    if shape == "round":
        draw.ellipse(box, fill=fill, outline=border, width=width)
    elif shape == "pill":
        draw.rounded_rectangle(box, radius=(box[3] - box[1]) // 2, fill=fill, outline=border, width=width)
    else:
        points = _outline(shape, box)
        draw.polygon(points, fill=fill)
        draw.line([*points, points[0], points[1]], fill=border, width=width, joint="curve")


def _outline(shape: Shape, box: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box
    width, height, middle = x2 - x1, y2 - y1, (y1 + y2) / 2
    if shape == "rectangle":
        return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    if shape == "hexagon":
        inset = 0.16 * width
        return [(x1 + inset, y1), (x2 - inset, y1), (x2, middle), (x2 - inset, y2), (x1 + inset, y2), (x1, middle)]
    if shape == "arrow":
        inset = 0.22 * width
        return [(x1, y1), (x2 - inset, y1), (x2, middle), (x2 - inset, y2), (x1, y2)]
    cut = 0.22 * height  # ticket: a rectangle with its corners cut
    return [
        (x1 + cut, y1),
        (x2 - cut, y1),
        (x2 - cut, y1 + cut),
        (x2, y1 + cut),
        (x2, y2 - cut),
        (x2 - cut, y2 - cut),
        (x2 - cut, y2),
        (x1 + cut, y2),
        (x1 + cut, y2 - cut),
        (x1, y2 - cut),
        (x1, y1 + cut),
        (x1 + cut, y1 + cut),
    ]


def _jittered(rng: np.random.Generator, colour: Colour) -> Colour:
    shifted = np.clip(np.asarray(colour) + rng.integers(-14, 15, 3), 0, 255)
    return int(shifted[0]), int(shifted[1]), int(shifted[2])


# --- backgrounds


def render_background(rng: np.random.Generator, kind: str, side_px: int) -> Image.Image:
    """A muted picture without any tag: smooth, stripes, blocks, gradient, checks or speckle."""
    base = rng.uniform(60, 200, 3)
    tint = base + rng.uniform(-45, 45, 3)
    weight = _pattern(rng, kind)[..., None]
    grey = (base + tint).mean() / 2  # muted, so that the colours of tags stand out
    values = 0.45 * (base * (1 - weight) + tint * weight) + 0.55 * grey
    values = values + rng.normal(0, 3, values.shape)
    small = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    resample = Image.Resampling.NEAREST if kind in ("blocks", "checks", "speckle") else Image.Resampling.BILINEAR
    return small.resize((side_px, side_px), resample)


def _pattern(rng: np.random.Generator, kind: str) -> NDArray[np.float64]:
    """A pattern as weights in 0..1 on a coarse grid."""
    weight: NDArray[np.float64]
    if kind == "smooth":
        cells = int(rng.integers(3, 9))
        return rng.random((cells, cells))
    if kind == "blocks":
        return rng.random((int(rng.integers(3, 8)), int(rng.integers(3, 8))))
    row, column = np.mgrid[0:48, 0:48] / 48
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi)
        weight = 0.5 + 0.5 * np.sin(angle) * (row - 0.5) + 0.5 * np.cos(angle) * (column - 0.5)
        return weight
    if kind == "stripes":
        waves, angle = rng.uniform(3, 9), rng.uniform(0, np.pi)
        weight = 0.5 + 0.5 * np.sin(2 * np.pi * waves * (np.sin(angle) * row + np.cos(angle) * column))
        return weight
    if kind == "checks":
        count = int(rng.integers(4, 10))
        weight = ((row * count).astype(int) + (column * count).astype(int)) % 2.0
        return weight
    if kind == "speckle":
        return np.where(rng.random((64, 64)) < 0.2, 1.0, 0.0)
    raise ValueError(f"no background of the kind {kind!r}")


def _draw_distractors(rng: np.random.Generator, draw: ImageDraw.ImageDraw, side: int) -> None:
    """Draw muted shapes and lines that are not tags."""
    for _ in range(int(rng.integers(2, 9))):
        grey = int(rng.integers(40, 215))
        colour = _jittered(rng, (grey, grey, grey))
        x, y = rng.integers(0, side, 2)
        width, height = rng.integers(15, 120, 2)
        box = (int(x), int(y), int(x + width), int(y + height))
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, outline=colour, width=int(rng.integers(2, 8)))
        else:
            draw.line(box, fill=colour, width=int(rng.integers(2, 8)))
