"""The region proposal network: it scores every token by its relevance to the last prompt token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdrpn.method.spec import LlmSpec, ModelSpec
from sdrpn.model.layers import DecoderLayer, RmsNorm, head_norm, rotary, rotate

__all__ = ["Rpn"]


class ScoreAttention(nn.Module):
    """The query and key projections of the last RPN layer; the spec says whether positions turn them."""

    def __init__(self, llm: LlmSpec, *, rotary: bool) -> None:
        super().__init__()
        self.llm, self.rotary = llm, rotary
        self.q = nn.Linear(llm.width, llm.heads * llm.head_dim, bias=llm.attention_bias)
        self.k = nn.Linear(llm.width, llm.kv_heads * llm.head_dim, bias=llm.attention_bias)
        self.q_norm, self.k_norm = head_norm(llm), head_norm(llm)

    def forward(self, x: Tensor, positions: Tensor, asking: Tensor) -> Tensor:
        """The rows `asking` (B,A) of x (B,S,D) against all of it -> (B,H,A,S) float32, q.k / sqrt(d)."""
        query = self.queries(_rows(x, asking), _rows(positions, asking))
        by_key_head = query.reshape(len(x), self.llm.kv_heads, -1, self.llm.head_dim)  # (B,H_kv,H/H_kv*A,d)
        key = self.keys(x, positions)
        with torch.autocast(x.device.type, enabled=False):  # float32 even if the projections are trained in bfloat16
            scores: Tensor = by_key_head @ key.transpose(-1, -2)
        output: Tensor = scores.reshape(len(x), self.llm.heads, asking.shape[1], -1) / self.llm.head_dim**0.5
        return output

    def queries(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B,A,D) -> (B,H,A,d) float32."""
        return self._heads(self.q_norm, self.q(x), positions)

    def keys(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B,S,D) -> (B,H_kv,S,d) float32."""
        return self._heads(self.k_norm, self.k(x), positions)

    def _heads(self, norm: nn.Module, projected: Tensor, positions: Tensor) -> Tensor:
        heads: Tensor = norm(projected.reshape(*projected.shape[:2], -1, self.llm.head_dim)).transpose(1, 2).float()
        return rotate(heads, *rotary(self.llm, positions)) if self.rotary else heads


class ScoreLayer(nn.Module):
    """The last RPN layer; its values, output projection and MLP are never used and do not exist here."""

    def __init__(self, llm: LlmSpec, *, rotary: bool) -> None:
        super().__init__()
        self.input_norm = RmsNorm(llm.width, llm.rms_norm_eps)
        self.attention = ScoreAttention(llm, rotary=rotary)

    def forward(self, x: Tensor, positions: Tensor, asking: Tensor) -> Tensor:
        """x (B,S,D), the rows `asking` (B,A) -> scores (B,H,A,S) float32."""
        output: Tensor = self.attention(self.input_norm(x), positions, asking)
        return output

    def sink_logits(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (B,S,D) -> (B,S) float32: the first token's first query head against the keys of all heads, their mean."""
        normed, llm = self.input_norm(x), self.attention.llm
        query = self.attention.queries(normed[:, :1], positions[:, :1])[:, :1]  # (B,1,1,d)
        products = query * self.attention.keys(normed, positions)
        found: Tensor = products.sum(dim=-1).mean(dim=1) / llm.head_dim**0.5
        return found


class Rpn(nn.Module):
    """T-1 whole decoder layers on the tap, a norm where the spec has it, and the score layer with its own norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.rpn is None:
            raise ValueError("the model has no RPN")
        whole = [DecoderLayer(spec.llm) for _ in range(spec.rpn.layers - 1)]
        self.layers = nn.ModuleList([*whole, ScoreLayer(spec.llm, rotary=spec.rpn.rotary)])
        self.norm = RmsNorm(spec.llm.width, spec.llm.rms_norm_eps) if spec.rpn.outer_norm else nn.Identity()

    def forward(self, tap: Tensor, positions: Tensor, last_index: Tensor | None = None) -> Tensor:
        """Score every token for the one at last_index (B), the last of the prompt; None: the last token.

        Args:
            tap: (B,S,D)
            positions: (B,S), or as `rotary` takes them
        Returns: (B,H,S) float32 per head, q.k / sqrt(d); the caller takes the span of the image's tokens.
        """
        if last_index is None:
            last_index = torch.full((len(tap),), tap.shape[1] - 1, device=tap.device)
        output: Tensor = self._score_layer(self._states(tap, positions), positions, last_index[:, None])[:, :, 0]
        return output

    def row_scores(self, tap: Tensor, positions: Tensor, first: int) -> Tensor:
        """The same for each of the rows from `first` on: (B,H,S-first,S)."""
        asking = torch.arange(first, tap.shape[1], device=tap.device).expand(len(tap), -1)
        output: Tensor = self._score_layer(self._states(tap, positions), positions, asking)
        return output

    def sink_logits(self, tap: Tensor, positions: Tensor) -> Tensor:
        """How much the first token looks at every other: (B,S), see `ScoreLayer.sink_logits`."""
        return self._score_layer.sink_logits(self._states(tap, positions), positions)

    @property
    def _score_layer(self) -> ScoreLayer:
        last = self.layers[-1]
        assert isinstance(last, ScoreLayer)
        return last

    def _states(self, tap: Tensor, positions: Tensor) -> Tensor:
        """What the score layer reads: (B,S,D)."""
        x = tap
        for layer in self.layers[:-1]:
            x = layer(x, positions)
        output: Tensor = self.norm(x)
        return output


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x (B,S,...), index (B,A) -> (B,A,...)."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]
