"""From pixels to image tokens: CLIP up to the hidden state that is selected, then the projector.

N images, R image side in pixels, G cells a side, C width of the tower, D width of the LLM.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.method.spec import LlmSpec, ModelSpec
from sdrpn.model.vision import LookTokens, VisionModule

__all__ = ["ClipLayer", "ClipTower", "Projector", "VisionEncoder"]


class ClipAttention(nn.Module):
    """Full attention between all cells."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.heads = vision.heads
        self.q = nn.Linear(vision.width, vision.width)
        self.k = nn.Linear(vision.width, vision.width)
        self.v = nn.Linear(vision.width, vision.width)
        self.out = nn.Linear(vision.width, vision.width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,1+G*G,C) -> (N,1+G*G,C)."""
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return output


class ClipMlp(nn.Module):
    """Two layers; OpenAI's CLIP approximates GELU by x * sigmoid(1.702 x)."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.quick = vision.activation == "quick_gelu"
        self.fc1 = nn.Linear(vision.width, vision.mlp_width)
        self.fc2 = nn.Linear(vision.mlp_width, vision.width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,1+G*G,C) -> (N,1+G*G,C)."""
        inner = self.fc1(x)
        active = inner * torch.sigmoid(1.702 * inner) if self.quick else functional.gelu(inner)
        output: Tensor = self.fc2(active)
        return output


class ClipLayer(nn.Module):
    """Attention and MLP, each after its norm and added to the residual stream."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(vision.width, vision.layer_norm_eps)
        self.attention = ClipAttention(vision)
        self.norm2 = nn.LayerNorm(vision.width, vision.layer_norm_eps)
        self.mlp = ClipMlp(vision)

    def forward(self, x: Tensor) -> Tensor:
        """(N,1+G*G,C) -> (N,1+G*G,C)."""
        x = x + self.attention(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class ClipTower(nn.Module):
    """CLIP's image encoder as far as LLaVA needs it."""

    def __init__(self, vision: VisionSpec) -> None:
        super().__init__()
        width, patch = vision.width, vision.patch_size_px
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(vision.image_tokens + 1, width))
        self.pre_norm = nn.LayerNorm(width, vision.layer_norm_eps)
        # Layers above the selected hidden state would be computed for nothing.
        self.layers = nn.ModuleList(ClipLayer(vision) for _ in range(vision.used_layers))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N,3,R,R) -> (N,G*G,C), row-major; the class token is dropped and no final norm applied, as in LLaVA."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (N,G*G,C)
        class_token = self.class_embedding.expand(len(pixels), 1, -1)
        x: Tensor = self.pre_norm(torch.cat((class_token, patches), dim=1) + self.position_embedding)
        for layer in self.layers:
            x = layer(x)
        return x[:, 1:]


class Projector(nn.Module):
    """The layers `fc1`, `fc2`, ... that map cells to the LLM's width; an exact GELU between each two."""

    def __init__(self, vision: VisionSpec, llm: LlmSpec) -> None:
        super().__init__()
        for number, widths in enumerate(pairwise(vision.projector_widths(llm)), start=1):
            self.add_module(f"fc{number}", nn.Linear(*widths))

    def forward(self, features: Tensor) -> Tensor:
        """(N, any number of cells, C) -> (N, cells, D)."""
        first, *others = self.children()
        x: Tensor = first(features)
        for layer in others:
            x = layer(functional.gelu(x))
        return x


class VisionEncoder(VisionModule):
    """Tower and projector."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.tower = ClipTower(clip_of(spec))
        self.projector = Projector(clip_of(spec), spec.llm)

    def forward(self, *look: Tensor) -> Tensor:
        """(N,3,R,R) -> image_embeds (N,G*G,D)."""
        output: Tensor = self.projector(self.tower(*look))
        return output

    def kept(self, *look: Tensor, keep: Tensor) -> LookTokens:
        """(1,3,R,R) and the kept cells (G*G,) -> (1,n,D); only those go through the projector."""
        return LookTokens(self.projector(self.tower(*look)[:, keep]))
