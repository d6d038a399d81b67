"""The vision module of a model's family, and its interface. PyTorch."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sdrpn.families.registry import family_of, load_part
from sdrpn.method.spec import ModelSpec

__all__ = ["VisionModule", "vision_module"]


class VisionModule(nn.Module):
    """From pixels to image tokens. Parameters are called `tower.*` (`vision.*` in a checkpoint) and `projector.*`."""

    def forward(self, pixels: Tensor) -> Tensor:
        """One look, or several of one shape -> image_embeds (N, cells, D)."""
        raise NotImplementedError

    def kept(self, pixels: Tensor, keep: Tensor) -> Tensor:
        """One look, of which only the cells that are true in `keep` (h*w,) are returned -> (n,D)."""
        raise NotImplementedError


def vision_module(spec: ModelSpec) -> VisionModule:
    """The family's vision module, with PyTorch's initial weights."""
    return cast(VisionModule, load_part(family_of(spec).vision_module)(spec))
