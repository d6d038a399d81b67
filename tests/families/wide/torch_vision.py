"""Its vision module: two matrices."""

from __future__ import annotations

from torch import Tensor, nn

from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec
from sdrpn.model.vision import VisionModule


class WideVision(VisionModule):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        patch = family_of(spec).vision_shapes(spec)["vision.patch.weight"][1]
        self.patch = nn.Linear(patch, spec.llm.width)
        self.place = nn.Linear(2, spec.llm.width, bias=False)

    def forward(self, *look: Tensor) -> Tensor:
        """Patches (N,cells,3*P*P) and places (N,cells,2) -> (N,cells,D)."""
        patches, places = look
        tokens: Tensor = self.patch(patches) + self.place(places)
        return tokens
