"""The LLM below the tap: layers 0..K-1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sdrpn.method.spec import ModelSpec
from sdrpn.model.layers import DecoderLayer, KvCache

__all__ = ["Trunk"]


class Trunk(nn.Module):
    """The part of the LLM that the first pass runs."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(spec.llm) for _ in range(spec.tap_layer))

    def forward(
        self, embeds: Tensor, positions: Tensor, cache: KvCache | None = None, deepstack: Sequence[Tensor] = ()
    ) -> Tensor:
        """Embeds (B,S,D), positions (B,S) -> tap (B,S,D): the residual stream, without a norm.

        deepstack: (B,S,D) each: feature j is added after layer j, where a family has such
        """
        x = embeds
        for index, layer in enumerate(self.layers):
            x = layer(x, positions, cache, index)
            if index < len(deepstack):
                x = x + deepstack[index]
        return x
