"""The vision towers as modules that take what the vision graph takes. PyTorch."""

from __future__ import annotations

from torch import Tensor

from sdrpn.families.qwen.torch_vision import Tower25, tower
from sdrpn.method.spec import ModelSpec
from sdrpn.model.vision import LookTokens, VisionModule

__all__ = ["QwenVisionModule"]


class QwenVisionModule(VisionModule):
    """One picture, or the patches of several one after another."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.tower = tower(spec)

    def forward(self, *look: Tensor) -> Tensor:
        """The vision graph's inputs in their order -> (1,n,D)."""
        return self.features(*look).embeds

    def features(self, *look: Tensor) -> LookTokens:
        """See `VisionModule`."""
        patches, cos, sin, *others = look
        patches = patches.to(self.tower.merger.fc1.weight.dtype)
        # Both halves of a head's channels turn alike: (1,1,N,d).
        turns = cos.repeat(1, 2)[None, None], sin.repeat(1, 2)[None, None]
        if isinstance(self.tower, Tower25):
            rows, _, slots = others
            others = [slots // rows.shape[1]]
        found: LookTokens = self.tower(patches, turns, *others)
        return found
