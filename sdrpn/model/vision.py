"""The vision module of a model's family, and its interface. PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from sdrpn.families.registry import family_of, load_part
from sdrpn.method.spec import ModelSpec

__all__ = ["LookTokens", "VisionModule", "vision_module"]


@dataclass(frozen=True, eq=False)
class LookTokens:
    """Pictures or crops as the LLM gets them."""

    embeds: Tensor  # (N, cells, D)
    deepstack: tuple[Tensor, ...] = ()  # of the same shape: feature j is added after the LLM's layer j

    def at(self, keep: Tensor) -> LookTokens:
        """One look, of which only the cells (h*w,) that are true are wanted: (1,n,D)."""
        return LookTokens(self.embeds[:, keep], tuple(feature[:, keep] for feature in self.deepstack))


class VisionModule(nn.Module):
    """From looks to image tokens.

    Parameters `projector.*` are called so in a checkpoint, too; all others, with or without `tower.`, are `vision.*`.
    """

    def forward(self, *look: Tensor) -> Tensor:
        """The vision graph's inputs in their order: one look, or several of one shape -> image_embeds (N, cells, D)."""
        raise NotImplementedError

    def features(self, *look: Tensor) -> LookTokens:
        """The same, with what families add to the LLM's first layers."""
        return LookTokens(self(*look))

    def kept(self, *look: Tensor, keep: Tensor) -> LookTokens:
        """One look, of which only the cells (h*w,) that are true are wanted -> (1,n,D)."""
        return self.features(*look).at(keep)


def vision_module(spec: ModelSpec) -> VisionModule:
    """The family's vision module, with PyTorch's initial weights."""
    return cast(VisionModule, load_part(family_of(spec).vision_module)(spec))
