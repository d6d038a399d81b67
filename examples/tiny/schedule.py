"""Learning rates, and states that a run goes on from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

WARMUP_STEPS = 100


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a half cosine down to a fiftieth of the peak."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))


def save_state(folder: Path, modules: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Written beside the old state and then put in its place: a run that is killed loses nothing older."""
    state = {"step": step, "modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.pt")


def load_state(folder: Path, modules: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with."""
    state = torch.load(folder / "state.pt", weights_only=True)
    modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
