"""Stages V1 to V3: the tower learns to read, cell by cell, with heads that are thrown away afterwards.

python examples/tiny/train_vision.py --stage V1 --out RUNS/V1 [--resume]
python examples/tiny/train_vision.py --stage V2 --start RUNS/V1 --out RUNS/V2
python examples/tiny/train_vision.py --stage V3 --start RUNS/V2 --out RUNS/V3
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from dense_heads import DenseHeads, normalised
from networks import SPEC, VisionTower
from PIL import Image
from schedule import Optimizers, learning_rate, load_state, save_state
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from views import (
    ALL_DIGITS,
    SMALL_DIGITS,
    UNKNOWN,
    PageStyle,
    View,
    Window,
    page_view,
    scene_view,
    tight_window,
    window_on,
)

from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.tags.scene import SEEN, Scene, render_scene
from sdrpn.tags.task import TRAINED_CODES

BATCH = 64
PAGES, BASES = 32, 10  # of a batch; the rest are windows of scenes
PEAK_RATE, WARMUP_STEPS = 2e-3, 100


@dataclass(frozen=True)
class VisionStage:
    """What pages show, and whether windows also fit tightly around a tag."""

    seed: int
    steps: int
    pages: PageStyle
    tight_windows: bool


STAGES = {
    "V1": VisionStage(seed=11, steps=1800, pages=SMALL_DIGITS, tight_windows=False),
    "V2": VisionStage(seed=12, steps=1300, pages=ALL_DIGITS, tight_windows=True),
    "V3": VisionStage(seed=13, steps=2000, pages=ALL_DIGITS, tight_windows=True),
}


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch number n of a stage is the same in every run, resumed or not."""

    def __init__(self, stage: VisionStage, steps: range) -> None:
        self.stage, self.steps = stage, steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        views = make_batch(np.random.default_rng((self.stage.seed, self.steps[index])), self.stage)
        pixels = np.stack([view.pixels for view in views])
        truth = np.stack([view.truth for view in views])
        return torch.from_numpy(pixels), torch.from_numpy(truth).flatten(1, 2)


def make_batch(rng: np.random.Generator, stage: VisionStage) -> list[View]:
    """Pages, whole scenes without truth of digits that nobody could read, and windows with it."""
    side, patch = clip_of(SPEC).image_size_px, clip_of(SPEC).patch_size_px
    views = [page_view(rng, stage.pages, side, patch) for _ in range(PAGES)]
    while len(views) < BATCH:
        scene = render_scene(rng, SEEN, TRAINED_CODES)
        if len(views) < PAGES + BASES * 3:
            base = scene_view(scene, (0, 0, 840, 840), side, patch, Image.Resampling.BICUBIC)
            base.truth[..., :2] = UNKNOWN
            views.append(base)
        for window in windows(rng, scene, stage):
            views.append(scene_view(scene, window, side, patch, Image.Resampling.BILINEAR))
    return views[:BATCH]


def windows(rng: np.random.Generator, scene: Scene, stage: VisionStage) -> Iterator[Window]:
    """Two on the grid, and one that is not."""
    for _ in range(2):
        tag = scene.tags[rng.integers(len(scene.tags))]
        yield window_on(rng, tag, SEEN.grid_cells, (2, 5) if stage.tight_windows else (2, 6))
    if stage.tight_windows:
        yield tight_window(rng, scene.tags[rng.integers(len(scene.tags))], SEEN.grid_cells)


def main() -> None:
    """Train, log and keep the state every 50 steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--start", type=Path, help="folder of the stage before")
    parser.add_argument("--steps", type=int, help="in place of the stage's own")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    stage = STAGES[args.stage]
    steps = args.steps or stage.steps
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    tower, heads = VisionTower(), DenseHeads()
    modules = nn.ModuleDict({"tower": tower, "heads": heads})
    optimizer = Optimizers({1.0: modules})
    first = load_state(args.out, modules, optimizer) if args.resume else 0
    if args.start and not first:
        modules.load_state_dict(torch.load(args.start / "state.pt", weights_only=True)["modules"])
    loader = DataLoader(Batches(stage, range(first, steps)), batch_size=None, num_workers=1, prefetch_factor=4)
    began = time.monotonic()
    for step, (pixels, truth) in enumerate(loader, start=first):
        loss, _ = heads.losses(tower(normalised(pixels)), truth)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step(learning_rate(step, steps, PEAK_RATE, WARMUP_STEPS))
        if step % 10 == 9:
            report(args.out, tower, heads, step + 1, pixels, truth, time.monotonic() - began)
        if step % 50 == 49 or step + 1 == steps:
            save_state(args.out, modules, optimizer, step + 1)


@torch.no_grad()
def report(
    out: Path, tower: VisionTower, heads: DenseHeads, step: int, pixels: Tensor, truth: Tensor, seconds: float
) -> None:
    """Pages and scenes apart: digits on pages, and what else is read off whole scenes and windows."""
    line: dict[str, float] = {"step": step, "seconds": round(seconds, 1)}
    for name, part in (("page", slice(0, 16)), ("window", slice(PAGES + 1, None, 3))):
        loss, shares = heads.losses(tower(normalised(pixels[part])), truth[part])
        line |= {f"{name}_loss": round(loss.item(), 4)}
        line |= {f"{name}_{field}": round(share, 4) for field, share in shares.items()}
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    main()
