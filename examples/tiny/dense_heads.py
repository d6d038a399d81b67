"""What the tower says of every cell while it is trained: temporary classifiers, which no checkpoint keeps."""

from __future__ import annotations

import torch
from networks import SPEC
from torch import Tensor, nn
from torch.nn import functional
from views import FIELDS, UNKNOWN

from sdrpn.families.llava.vision_spec import clip_of


class DenseHeads(nn.Module):
    """One linear classifier a field."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(clip_of(SPEC).width)
        self.outputs = nn.Linear(clip_of(SPEC).width, sum(count + 1 for count in FIELDS.values()))

    def losses(self, features: Tensor, truth: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Sum of the fields' cross-entropies, and the share of things recognised.

        Args:
            features: (B,g*g,width)
            truth: (B,g*g,5)
        """
        logits = self.outputs(self.norm(features)).split([count + 1 for count in FIELDS.values()], dim=-1)
        total, shares = torch.zeros(()), {}
        for index, ((name, count), part) in enumerate(zip(FIELDS.items(), logits, strict=True)):
            wanted = truth[..., index].long()
            if (wanted == UNKNOWN).all():
                continue
            total = total + functional.cross_entropy(part.flatten(0, 1), wanted.flatten(), ignore_index=UNKNOWN)
            there = (wanted >= 0) & (wanted < count)
            shares[name] = (part.argmax(-1) == wanted)[there].float().mean().item()
        return total, shares


def normalised(pixels: Tensor) -> Tensor:
    """(B,r,r,3) uint8 -> (B,3,r,r), as the tower reads it."""
    mean, deviation = (torch.tensor(values) for values in (clip_of(SPEC).image_mean, clip_of(SPEC).image_std))
    return ((pixels.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()
