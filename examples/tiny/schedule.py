"""Learning rates, optimizers, and states that a run goes on from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from muon import Muon
from torch import nn


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a half cosine down to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for the rest (Jordan, 2024; Liu et al., 2025, arXiv 2502.16982).

    Muon's updates are scaled to the size of AdamW's, so one learning rate serves both.
    """

    def __init__(self, groups: dict[float, nn.Module]) -> None:
        """Groups: the share of the learning rate -> what is trained with it."""
        matrices, rest = [], []
        for share, module in groups.items():
            inner, outer = split_parameters(module)
            matrices.append({"params": inner, "share": share})
            rest.append({"params": outer, "share": share})
        muon = Muon(matrices, weight_decay=0.02)
        self.parts = [muon, torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.02)]

    def step(self, rate: float) -> None:
        """One step of both, after which the gradients are gone."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["share"] * rate
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of both parts."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse of `state_dict`."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of linear layers that lie in encoder or decoder layers, and all else that is trained."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (inner if parameter.ndim == 2 and ".layers." in name else outer).append(parameter)
    return inner, outer


def save_state(folder: Path, modules: nn.Module, optimizer: Optimizers, step: int) -> None:
    """Written beside the old state and then put in its place: a run that is killed loses nothing older."""
    state = {"step": step, "modules": modules.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / "state.tmp")
    (folder / "state.tmp").replace(folder / "state.pt")


def load_state(folder: Path, modules: nn.Module, optimizer: Optimizers) -> int:
    """The step to go on with."""
    state = torch.load(folder / "state.pt", weights_only=True)
    modules.load_state_dict(state["modules"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
