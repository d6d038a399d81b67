"""The gate: it says from the first look whether a second is worth it. PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdrpn.method.spec import ModelSpec
from sdrpn.model.layers import DecoderLayer, KvCache
from sdrpn.model.tail import rows_at

__all__ = ["Gate"]


class Gate(nn.Module):
    """Whole decoder layers on the tap and one score of the last token, without a norm between."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.rpn is None or not spec.rpn.gate_layers:
            raise ValueError("the model has no gate")
        self.layers = nn.ModuleList(DecoderLayer(spec.llm) for _ in range(spec.rpn.gate_layers))
        self.head = nn.Linear(spec.llm.width, 1)

    def forward(
        self, tap: Tensor, positions: Tensor, last_index: Tensor | None = None, cache: KvCache | None = None
    ) -> Tensor:
        """Tap (B,S,D), positions as the layers take them -> (B,), before the sigmoid.

        last_index: (B,) the token that is scored; None: the last one
        """
        x = tap
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, cache, index)
        logits: Tensor = self.head(rows_at(x, last_index))[:, 0]
        return logits.to(torch.float32)
