"""The vision towers as modules that take what the vision graph takes. PyTorch."""

from __future__ import annotations

from torch import Tensor

from sdrpn.families.qwen.torch_vision import Look, Tower25, tower
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
        found = self._encoded(*look)
        return LookTokens(found.embeds[None], tuple(feature[None] for feature in found.deepstack))

    def _encoded(self, *look: Tensor) -> Look:
        patches, cos, sin, *others = look
        patches = patches.to(self.tower.merger.fc1.weight.dtype)
        # Both halves of a head's channels turn alike: (1,1,N,d).
        turns = cos.repeat(1, 2)[None, None], sin.repeat(1, 2)[None, None]
        if isinstance(self.tower, Tower25):
            rows, _, slots = others
            return self.tower.encode(patches, turns, slots // rows.shape[1])
        entries, weights = others
        return self.tower.encode(patches, turns, entries, weights)
