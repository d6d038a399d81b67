"""Training examples of the language stages: a picture, a crop of it perhaps, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from networks import SPEC
from numpy.typing import NDArray
from packing import PackedQuestions, Packer
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from views import Window, random_window, scene_view, tight_window, window_on

from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.tags.questions import TagQuestion, coarse_question, code_question
from sdrpn.tags.scene import CELL_PX, SEEN, Scene, SceneStyle, Tag, render_scene
from sdrpn.tags.task import TRAINED_CODES

# Plates of 2.5 to 4 cells with digits as high as crops show them: the first look can read these.
READABLE = replace(
    SEEN,
    tags=(3, 5),
    plate_w_cells=(2.5, 4.0),
    plate_h_cells=(1.4, 2.6),
    cap_px=(60, 90),
    advance_px=(56, 80),
)
READABLE_WINDOW = replace(READABLE, grid_cells=6, tags=(2, 3))


@dataclass(frozen=True)
class Stage:
    """One stage of the language model's training."""

    name: str
    grid_cells: int  # of the picture that the tower sees; 12: the whole grid
    questions: int  # packed behind one picture
    batch: int
    steps: int
    peak_rate: float
    tower_rate: float  # factor on the rate; 0: frozen
    with_crops: bool = False


STAGES = {
    "L0": Stage("L0", grid_cells=6, questions=4, batch=64, steps=600, peak_rate=2e-3, tower_rate=0),
    "C": Stage("C", grid_cells=12, questions=4, batch=32, steps=1200, peak_rate=1e-3, tower_rate=0.4, with_crops=True),
}


@dataclass
class Batch:
    """What one step is trained on. b pictures, c crops each.

    base: (b,r,r,3) uint8. crops: (b*c,R,R,3) uint8. truth: dense truth of the bases, then of the crops, (.., g*g,5).
    keep: which cells of the crops are inserted, (k,).
    """

    base: Tensor
    crops: Tensor
    base_truth: Tensor
    crop_truth: Tensor
    keep: Tensor
    corner_rc: tuple[int, int]
    questions: PackedQuestions


class Conversations(Dataset[Batch]):
    """Batch number n of a stage is the same in every run."""

    def __init__(self, stage: Stage, steps: range) -> None:
        self.stage, self.steps, self.packer = stage, steps, Packer()

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        seed = (list(STAGES).index(self.stage.name) + 21, self.steps[index])
        return self.make(np.random.default_rng(seed))

    def make(self, rng: np.random.Generator) -> Batch:
        """Crops are alike in count and kept cells over a batch, so that all rows have one length."""
        stage, size = self.stage, clip_of(SPEC)
        side_px = stage.grid_cells * size.patch_size_px
        limit = size.grid_side - stage.grid_cells + 1
        corner = (int(rng.integers(limit)), int(rng.integers(limit)))
        crop_count, keep = crop_layout(rng) if stage.with_crops else (0, np.arange(0))
        bases, crops, asked = [], [], []
        for _ in range(stage.batch):
            scene = self._scene(rng, crop_count)
            whole = (0, 0, stage.grid_cells * CELL_PX, stage.grid_cells * CELL_PX)
            bases.append(scene_view(scene, whole, side_px, size.patch_size_px, Image.Resampling.BICUBIC))
            windows = [draw_window(rng, scene) for _ in range(crop_count)]
            for window in windows:
                crops.append(
                    scene_view(scene, window, size.image_size_px, size.patch_size_px, Image.Resampling.BILINEAR)
                )
            readable = visible_tags(scene, windows) if crop_count else readable_tags(scene)
            asked.append([draw_question(rng, scene, readable) for _ in range(stage.questions)])
        return Batch(
            base=torch.from_numpy(np.stack([view.pixels for view in bases])),
            crops=torch.from_numpy(np.stack([view.pixels for view in crops])) if crops else torch.empty(0),
            base_truth=torch.from_numpy(np.stack([view.truth for view in bases])).flatten(1, 2),
            crop_truth=(
                torch.from_numpy(np.stack([view.truth for view in crops])).flatten(1, 2) if crops else torch.empty(0)
            ),
            keep=torch.from_numpy(keep),
            corner_rc=corner,
            questions=self.packer.pack(rng, asked),
        )

    def _scene(self, rng: np.random.Generator, crop_count: int) -> Scene:
        """Half of the scenes without a crop can be read as they are: these teach to find and read with one look."""
        if self.stage.grid_cells < clip_of(SPEC).grid_side:
            return render_scene(rng, READABLE_WINDOW, TRAINED_CODES)
        readable = rng.random() < (0.1 if crop_count else 0.5)
        style: SceneStyle = READABLE if readable else SEEN
        return render_scene(rng, style, TRAINED_CODES)


def draw_window(rng: np.random.Generator, scene: Scene) -> Window:
    """Drawn before the question is, so that where the crop lies says nothing about what is asked."""
    draw, tag = rng.random(), scene.tags[rng.integers(len(scene.tags))]
    if draw < 0.35:
        return tight_window(rng, tag, clip_of(SPEC).grid_side)
    if draw < 0.8:
        return window_on(rng, tag, clip_of(SPEC).grid_side, (2, 5))
    return random_window(rng, clip_of(SPEC).grid_side, (2, 6))


def draw_question(rng: np.random.Generator, scene: Scene, readable: list[Tag]) -> TagQuestion:
    """The code of a tag that can be read, or something coarse about any."""
    if readable and rng.random() < 0.7:
        return code_question(rng, readable[rng.integers(len(readable))])
    return coarse_question(rng, scene)


def crop_layout(rng: np.random.Generator) -> tuple[int, NDArray[np.int64]]:
    """How many crops a batch has, and which of their cells are inserted: mostly one, whole."""
    cells = SPEC.vision.image_tokens
    draw = rng.random()
    if draw < 0.4:
        return 0, np.arange(0)
    if draw < 0.43:
        return 2, np.arange(cells)
    if draw < 0.49:
        kept = rng.choice(cells, int(cells * rng.uniform(0.3, 0.7)), replace=False)
        return 1, np.sort(kept)
    return 1, np.arange(cells)


def readable_tags(scene: Scene) -> list[Tag]:
    """Tags whose digits are as high as crops show them."""
    return [tag for tag in scene.tags if tag.box_xyxy_px[2] - tag.box_xyxy_px[0] >= 2.45 * CELL_PX]


def visible_tags(scene: Scene, windows: list[Window]) -> list[Tag]:
    """Tags with their whole code inside one of the windows."""
    margin = 13

    def shows(window: Window, tag: Tag) -> bool:
        return all(
            window[0] + margin <= x <= window[2] - margin and window[1] + margin <= y <= window[3] - margin
            for x, y in (digit.centre_xy for digit in tag.digits)
        )

    return [tag for tag in scene.tags if any(shows(window, tag) for window in windows)]
