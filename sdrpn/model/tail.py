"""The LLM above the tap: layers K..L-1, the final norm and the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdrpn.method.spec import ModelSpec
from sdrpn.model.layers import DecoderLayer, KvCache, RmsNorm

__all__ = ["Tail", "rows_at"]


class Tail(nn.Module):
    """From a tap to the next token's logits. Its cache is indexed from 0, as in a separate model."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(spec.llm) for _ in range(spec.tail_layers))
        self.norm = RmsNorm(spec.llm.width, spec.llm.rms_norm_eps)
        self.head = nn.Linear(spec.llm.width, spec.llm.vocabulary, bias=False)

    def forward(
        self, tap: Tensor, positions: Tensor, cache: KvCache | None = None, last_index: Tensor | None = None
    ) -> Tensor:
        """Tap (B,S,D), positions (B,S) -> logits (B,V) float32 of the token at last_index (B); None: the last token."""
        output: Tensor = self.head(self.norm(rows_at(self.hidden(tap, positions, cache), last_index))).float()
        return output

    def hidden(self, tap: Tensor, positions: Tensor, cache: KvCache | None = None) -> Tensor:
        """(B,S,D) -> (B,S,D): the residual stream after the last layer."""
        x = tap
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, cache, index)
        return x


def rows_at(x: Tensor, last_index: Tensor | None) -> Tensor:
    """x (B,S,D) -> (B,D): the row of each batch entry at its index, or the last one."""
    if last_index is None:
        return x[:, -1]
    return x[torch.arange(len(x), device=x.device), last_index]
