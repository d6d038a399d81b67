"""The gate: it says from the first look whether a second is worth it. PyTorch.

N statistics of the RoI map, see `sdrpn.method.gate.MAP_STATISTICS`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdrpn.method.gate import MAP_STATISTICS
from sdrpn.method.spec import ModelSpec
from sdrpn.model.layers import DecoderLayer, KvCache
from sdrpn.model.tail import rows_at

__all__ = ["Gate"]


class Gate(nn.Module):
    """Whole decoder layers on the tap and one score of the last token, without a norm between.

    A probe has no layers, and its score is also of statistics of the map.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.rpn is None or not spec.rpn.has_gate:
            raise ValueError("the model has no gate")
        self.layers = nn.ModuleList(DecoderLayer(spec.llm) for _ in range(spec.rpn.gate_layers))
        self.is_probe = spec.rpn.gate_probe
        self.head = nn.Linear(spec.llm.width + (len(MAP_STATISTICS) if self.is_probe else 0), 1)

    def forward(
        self,
        tap: Tensor,
        positions: Tensor,
        last_index: Tensor | None = None,
        cache: KvCache | None = None,
        statistics: Tensor | None = None,
    ) -> Tensor:
        """Tap (B,S,D), positions as the layers take them -> (B,), before the sigmoid.

        last_index: (B,) the token that is scored; None: the last one
        statistics: (B,N), for a probe
        """
        x = tap
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, cache, index)
        row = rows_at(x, last_index)
        if self.is_probe:
            if statistics is None:
                raise ValueError("a probe needs the map's statistics")
            row = torch.cat((row, statistics.to(row)), dim=1)
        logits: Tensor = self.head(row)[:, 0]
        return logits.to(torch.float32)
