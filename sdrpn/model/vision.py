"""The vision module of a model's family, and its interface. PyTorch."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sdrpn.families.registry import family_of, load_part
from sdrpn.method.spec import ModelSpec

__all__ = ["VisionModule", "vision_module"]


class VisionModule(nn.Module):
    """From looks to image tokens.

    Parameters `projector.*` are called so in a checkpoint, too; all others, with or without `tower.`, are `vision.*`.
    """

    def forward(self, *look: Tensor) -> Tensor:
        """The vision graph's inputs in their order: one look, or several of one shape -> image_embeds (N, cells, D)."""
        raise NotImplementedError

    def kept(self, *look: Tensor, keep: Tensor) -> Tensor:
        """One look, of which only the cells (h*w,) that are true are wanted -> (n,D)."""
        tokens: Tensor = self(*look)[0]
        return tokens[keep]


def vision_module(spec: ModelSpec) -> VisionModule:
    """The family's vision module, with PyTorch's initial weights."""
    return cast(VisionModule, load_part(family_of(spec).vision_module)(spec))
