"""The layers of trunk and tail as one stack, of which any part can run. PyTorch; knows nothing about images or taps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdrpn.model.base import SdRpnModel
from sdrpn.model.layers import DecoderLayer, KvCache

__all__ = ["LayerStack"]


class LayerStack:
    """All layers of a model's LLM. Keys and values are cached under the layer numbers 0 to L-1."""

    def __init__(self, model: SdRpnModel) -> None:
        every = (*model.trunk.layers, *model.tail.layers)
        self.layers: list[DecoderLayer] = [layer for layer in every if isinstance(layer, DecoderLayer)]

    def __len__(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        cache: KvCache,
        first: int = 0,
        last: int | None = None,
        deepstack: Sequence[Tensor] = (),
    ) -> Tensor:
        """x (B,S,D) at `positions` through layers first..last-1 -> the residual stream (B,S,D) after them.

        Args:
            last: None: through all that follow
            deepstack: (B,S,D) each: feature j is added after layer j
        """
        for index in range(first, len(self.layers) if last is None else last):
            x = self.layers[index](x, positions, cache, index)
            if index < len(deepstack):
                x = x + deepstack[index]
        return x
