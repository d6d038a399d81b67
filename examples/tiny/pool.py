"""Scenes rendered once and seen once by a tower that does not learn any more, to be asked about again and again.

Rendering and looking take longer than a step of the language model, so a stage that leaves the tower alone does both
in advance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from conversations import READABLE, draw_question, draw_window, readable_tags, visible_tags
from dense_heads import normalised
from networks import SPEC, VisionTower
from packing import PackedQuestions, Packer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from views import Window, scene_view

from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.tags.questions import TagQuestion
from sdrpn.tags.scene import CELL_PX, SEEN, Scene, Tag, render_scene
from sdrpn.tags.task import TRAINED_CODES

CROPS = 2  # windows kept of a scene; a question sees one of them
READABLE_SHARE = 0.35
SCENES_AT_ONCE = 50


@dataclass(frozen=True)
class PooledScene:
    """What questions need to know of a scene. windows: what its crops show."""

    tags: tuple[Tag, ...]
    readable: bool
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class PooledBatch:
    """base, crops: (b,G*G,width), crops None where the answer comes from one look."""

    base: Tensor
    crops: Tensor | None
    questions: PackedQuestions


class RenderedScenes(Dataset[tuple[PooledScene, Tensor]]):
    """Scene number n is the same in every run: with its pixels (1+CROPS,r,r,3) uint8, whole and of its windows."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[PooledScene, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        readable = bool(rng.random() < READABLE_SHARE)
        scene = render_scene(rng, READABLE if readable else SEEN, TRAINED_CODES)
        side, patch, whole = clip_of(SPEC).image_size_px, clip_of(SPEC).patch_size_px, clip_of(SPEC).grid_side * CELL_PX
        windows = tuple(draw_window(rng, scene) for _ in range(CROPS))
        views = [scene_view(scene, (0, 0, whole, whole), side, patch, Image.Resampling.BICUBIC)]
        views += [scene_view(scene, window, side, patch, Image.Resampling.BILINEAR) for window in windows]
        pixels = torch.from_numpy(np.stack([view.pixels for view in views]))
        return PooledScene(scene.tags, readable, windows), pixels


class Pool:
    """Scenes with the tower's features of each and of its crops, (n,1+CROPS,G*G,width) in half precision: 1.1 GB."""

    def __init__(self, tower: VisionTower, seed: int, count: int, progress: Callable[[int], None]) -> None:
        rendered = RenderedScenes(seed, count)
        loader = DataLoader(rendered, batch_size=SCENES_AT_ONCE, num_workers=2, collate_fn=list)
        self.scenes: list[PooledScene] = []
        self.packer = Packer()
        self.features = torch.empty(count, 1 + CROPS, clip_of(SPEC).image_tokens, clip_of(SPEC).width, dtype=torch.half)
        for part in loader:
            done = len(self.scenes)
            pixels = torch.cat([views for _, views in part])
            with torch.no_grad():
                seen = tower(normalised(pixels))
            self.features[done : done + len(part)] = seen.half().unflatten(0, (len(part), 1 + CROPS))
            self.scenes += [scene for scene, _ in part]
            progress(len(self.scenes))

    def batch(self, rng: np.random.Generator, pictures: int, questions: int, crops: bool) -> PooledBatch:
        """New pictures, each with other questions than before."""
        chosen = rng.integers(len(self.scenes), size=pictures)
        place = int(rng.integers(CROPS))
        asked = [self._questions(rng, self.scenes[index], questions, place if crops else None) for index in chosen]
        seen = self.features[torch.from_numpy(chosen)].float()
        return PooledBatch(seen[:, 0], seen[:, 1 + place] if crops else None, self.packer.pack(rng, asked))

    def _questions(
        self, rng: np.random.Generator, pooled: PooledScene, count: int, place: int | None
    ) -> list[TagQuestion]:
        """About codes only where one can be read: at first sight, or else in the crop."""
        scene = Scene(Image.new("RGB", (1, 1)), pooled.tags)  # questions need no pixels
        if pooled.readable:
            readable = readable_tags(scene)
        else:
            readable = [] if place is None else visible_tags(scene, [pooled.windows[place]])
        return [draw_question(rng, scene, readable) for _ in range(count)]
