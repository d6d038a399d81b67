"""Stage F: the LLM learns to find the tag that a question names, then to read it in crops. The tower stays as it is.

python examples/tiny/train_finding.py --start RUNS/C --out RUNS/F [--resume]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from pool import Pool
from saved_weights import read_weights
from schedule import Optimizers, load_state, save_state
from tiny_llava import TinyLlava
from torch import nn
from train_language import write_line

SEED, SCENES = 77, 10_000
PICTURES, QUESTIONS = 12, 8
STEPS, WITHOUT_CROPS = 2050, 550  # then half of the steps have a crop
PEAK_RATE, WARMUP_STEPS, DECAY_STEPS = 1.5e-3, 50, 750


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, and a straight line down to a fiftieth of the peak."""
    left = (steps - step) / min(DECAY_STEPS, steps)
    return PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS, max(0.02, left))


def main() -> None:
    """Train it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="folder of the stage before, or a checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    model = TinyLlava()
    for frozen in (model.tower, model.heads):
        frozen.requires_grad_(False)
    optimizer = Optimizers({1.0: nn.ModuleList([model.projector, model.llm])})
    first = 0
    if args.resume:
        first = load_state(args.out, model, optimizer)
    else:
        model.load_state_dict(read_weights(args.start), strict=False)
    pool = Pool(model.tower, SEED, args.scenes, lambda done: print(f"\r{done} scenes", end="", flush=True))
    began = time.monotonic()
    for step in range(first, args.steps):
        rng = np.random.default_rng((SEED + 1, step))
        crops = step >= WITHOUT_CROPS and bool(rng.random() < 0.5)
        batch = pool.batch(rng, PICTURES, QUESTIONS, crops)
        loss, shares = model.language_loss(batch.base, batch.crops, batch.questions, subjects=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(step, args.steps))
        if step % 5 == 4:
            line = {"step": step + 1, "seconds": round(time.monotonic() - began, 1), "loss": round(loss.item(), 4)}
            write_line(args.out, line | shares | {"crops": int(crops)})
        if step % 50 == 49 or step + 1 == args.steps:
            save_state(args.out, model, optimizer, step + 1)


if __name__ == "__main__":
    main()
