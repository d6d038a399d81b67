"""The vision towers of both families in plain PyTorch: every layer as it is described, windows as a mask.

They take what `tower_inputs.py` makes of a picture's size. N patches of one picture in the order of `patches.py`,
n = N / merge^2 image tokens, C width of the tower, d channels of a head, D width of the LLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, QwenVision, qwen_vision_of
from sdrpn.method.spec import LlmSpec, ModelSpec
from sdrpn.model.layers import RmsNorm, rotate
from sdrpn.model.vision import LookTokens

__all__ = ["Tower3", "Tower25", "tower"]


class PatchEmbedding(nn.Conv3d):
    """One product over the frames of a patch; a still picture is the same in all of them."""

    def __init__(self, vision: QwenVision, *, bias: bool) -> None:
        kernel = (vision.frames, vision.patch_size_px, vision.patch_size_px)
        super().__init__(3, vision.width, kernel, stride=kernel, bias=bias)
        self.side_px, self.frames = vision.patch_size_px, vision.frames

    def forward(self, patches: Tensor) -> Tensor:
        """(N,3*P*P) -> (N,C)."""
        still = patches.reshape(-1, 3, 1, self.side_px, self.side_px).expand(-1, -1, self.frames, -1, -1)
        return super().forward(still).flatten(1)


class TowerAttention(nn.Module):
    """Queries and keys turn by row and column."""

    def __init__(self, vision: QwenVision) -> None:
        super().__init__()
        self.heads = vision.heads
        self.qkv = nn.Linear(vision.width, 3 * vision.width)
        self.out = nn.Linear(vision.width, vision.width)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        """(N,C) -> (N,C); seen: (N,N), True where a patch sees another; None: everywhere."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(1, 2, 0, 3)[:, None]  # (1,H,N,d)
        query, key = rotate(query, *turns), rotate(key, *turns)
        attended = functional.scaled_dot_product_attention(query, key, value, seen)
        output: Tensor = self.out(attended[0].transpose(0, 1).flatten(1))
        return output


class GatedTowerMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), with biases: Qwen2.5-VL's."""

    def __init__(self, vision: QwenVision) -> None:
        super().__init__()
        self.gate = nn.Linear(vision.width, vision.mlp_width)
        self.up = nn.Linear(vision.width, vision.mlp_width)
        self.down = nn.Linear(vision.mlp_width, vision.width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C) -> (N,C)."""
        output: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return output


class TowerMlp(nn.Module):
    """Two layers, GELU by its tanh approximation: Qwen3-VL's."""

    def __init__(self, vision: QwenVision) -> None:
        super().__init__()
        self.fc1 = nn.Linear(vision.width, vision.mlp_width)
        self.fc2 = nn.Linear(vision.mlp_width, vision.width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C) -> (N,C)."""
        output: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return output


class TowerLayer(nn.Module):
    """Attention and MLP, each behind its norm and added to the residual stream."""

    def __init__(self, vision: QwenVision, norms: tuple[nn.Module, nn.Module], mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attention = TowerAttention(vision)
        self.mlp = mlp

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
        """(N,C) -> (N,C)."""
        x = x + self.attention(self.norm1(x), turns, seen)
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class Merger(nn.Module):
    """The patches of an image token side by side, carried into the LLM's width; an exact GELU between both layers."""

    def __init__(self, vision: QwenVision, llm: LlmSpec, norm: nn.Module, *, norm_each_patch: bool) -> None:
        super().__init__()
        self.norm, self.norm_each_patch = norm, norm_each_patch
        self.merged_width = vision.merged_width
        self.fc1 = nn.Linear(vision.merged_width, vision.merged_width)
        self.fc2 = nn.Linear(vision.merged_width, llm.width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C) -> (n,D)."""
        if self.norm_each_patch:
            merged = self.norm(x).reshape(-1, self.merged_width)
        else:
            merged = self.norm(x.reshape(-1, self.merged_width))
        output: Tensor = self.fc2(functional.gelu(self.fc1(merged)))
        return output


class Tower25(nn.Module):
    """Qwen2.5-VL's: most layers look within windows."""

    def __init__(self, vision: Qwen25Vision, llm: LlmSpec) -> None:
        super().__init__()
        self.spec = vision
        self.patch = PatchEmbedding(vision, bias=False)
        self.layers = nn.ModuleList(
            TowerLayer(vision, (self._norm(), self._norm()), GatedTowerMlp(vision)) for _ in range(vision.layers)
        )
        self.merger = Merger(vision, llm, self._norm(), norm_each_patch=True)

    def forward(self, patches: Tensor, turns: tuple[Tensor, Tensor], window: Tensor) -> LookTokens:
        """(N,3*P*P), cos and sin (1,1,N,d), and the window (N,) of every patch -> (1,n,D)."""
        within = window[:, None] == window
        x = self.patch(patches)
        for number, layer in enumerate(self.layers):
            x = layer(x, turns, None if number in self.spec.full_layers else within)
        return LookTokens(self.merger(x)[None])

    def _norm(self) -> RmsNorm:
        return RmsNorm(self.spec.width, self.spec.norm_eps)


class Tower3(nn.Module):
    """Qwen3-VL's: a learned table of positions, full attention, features of several layers."""

    def __init__(self, vision: Qwen3Vision, llm: LlmSpec) -> None:
        super().__init__()
        self.spec = vision
        self.patch = PatchEmbedding(vision, bias=True)
        self.positions = nn.Parameter(torch.zeros(vision.position_side**2, vision.width))
        width, eps = vision.width, vision.norm_eps
        self.layers = nn.ModuleList(
            TowerLayer(vision, (nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)), TowerMlp(vision))
            for _ in range(vision.layers)
        )
        self.merger = Merger(vision, llm, nn.LayerNorm(width, eps), norm_each_patch=True)
        self.deepstack = nn.ModuleList(
            Merger(vision, llm, nn.LayerNorm(vision.merged_width, eps), norm_each_patch=False)
            for _ in vision.deepstack_layers
        )

    def forward(self, patches: Tensor, turns: tuple[Tensor, Tensor], rows: Tensor, weights: Tensor) -> LookTokens:
        """(N,3*P*P), cos and sin (1,1,N,d), entries of the table of positions and their weights (4,N) -> (1,n,D)."""
        placed = (self.positions[rows] * weights[..., None]).sum(dim=0)
        x = self.patch(patches) + placed.to(patches.dtype)
        found: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            x = layer(x, turns, None)
            if number in self.spec.deepstack_layers:
                found.append(self.deepstack[len(found)](x)[None])
        return LookTokens(self.merger(x)[None], tuple(found))


def tower(spec: ModelSpec) -> Tower25 | Tower3:
    """The tower of a model, with weights as PyTorch makes them."""
    vision = qwen_vision_of(spec)
    return Tower25(vision, spec.llm) if isinstance(vision, Qwen25Vision) else Tower3(vision, spec.llm)
