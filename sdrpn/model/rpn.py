"""The region proposal network: it scores every token by its relevance to the last prompt token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdrpn.method.spec import LlmSpec, ModelSpec
from sdrpn.model.layers import DecoderLayer, RmsNorm
from sdrpn.model.tail import rows_at

__all__ = ["Rpn"]


class ScoreAttention(nn.Module):
    """The query and key projections of the last RPN layer. Neither is rotated: scores do not depend on positions."""

    def __init__(self, llm: LlmSpec) -> None:
        super().__init__()
        self.llm = llm
        self.q = nn.Linear(llm.width, llm.heads * llm.head_dim, bias=False)
        self.k = nn.Linear(llm.width, llm.kv_heads * llm.head_dim, bias=False)

    def forward(self, asking: Tensor, x: Tensor) -> Tensor:
        """Scores of the query row (B,D) against x (B,S,D) -> (B,H,S) float32, q.k / sqrt(d)."""
        query = self.q(asking).float().reshape(len(x), self.llm.kv_heads, -1, self.llm.head_dim)  # (B,H_kv,H/H_kv,d)
        key = self.k(x).float().reshape(*x.shape[:2], self.llm.kv_heads, self.llm.head_dim)  # (B,S,H_kv,d)
        with torch.autocast(x.device.type, enabled=False):  # float32 even if the projections are trained in bfloat16
            scores: Tensor = query @ key.permute(0, 2, 3, 1)  # (B,H_kv,H/H_kv,S)
        output: Tensor = scores.flatten(1, 2) / self.llm.head_dim**0.5
        return output


class ScoreLayer(nn.Module):
    """The last RPN layer; its values, output projection and MLP are never used and do not exist here."""

    def __init__(self, llm: LlmSpec) -> None:
        super().__init__()
        self.input_norm = RmsNorm(llm.width, llm.rms_norm_eps)
        self.attention = ScoreAttention(llm)

    def forward(self, x: Tensor, last_index: Tensor | None) -> Tensor:
        """x (B,S,D) -> scores (B,H,S) float32."""
        normed = self.input_norm(x)
        output: Tensor = self.attention(rows_at(normed, last_index), normed)
        return output


class Rpn(nn.Module):
    """T-1 whole decoder layers on the tap, a norm, and the score layer with its own norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        if spec.rpn is None:
            raise ValueError("the model has no RPN")
        whole = [DecoderLayer(spec.llm) for _ in range(spec.rpn.layers - 1)]
        self.layers = nn.ModuleList([*whole, ScoreLayer(spec.llm)])
        self.norm = RmsNorm(spec.llm.width, spec.llm.rms_norm_eps)

    def forward(self, tap: Tensor, positions: Tensor, last_index: Tensor | None = None) -> Tensor:
        """Score every token for the one at last_index (B), the last of the prompt; None: the last token.

        Args:
            tap: (B,S,D)
            positions: (B,S)
        Returns: (B,H,S) float32 per head, q.k / sqrt(d); the caller takes the span of the image's tokens.
        """
        *whole, score_layer = self.layers
        x = tap
        for layer in whole:
            x = layer(x, positions)
        output: Tensor = score_layer(self.norm(x), last_index)
        return output
