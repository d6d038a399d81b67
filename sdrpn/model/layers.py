"""The LLaMA decoder layer and its parts. Knows nothing about images, taps or checkpoints.

B batch, S new tokens, N cached and new tokens, D width, H heads, d head_dim.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdrpn.method.rope import RotaryFrequencies, rotary_frequencies
from sdrpn.method.spec import LlmSpec

__all__ = [
    "Attention",
    "DecoderLayer",
    "GatedMlp",
    "KvCache",
    "RmsNorm",
    "causal_mask",
    "frequencies",
    "head_norm",
    "rotary",
    "rotate",
    "unpadded",
]


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 whatever the dtype of x (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        exact = x.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


@functools.lru_cache(maxsize=16)
def frequencies(llm: LlmSpec) -> RotaryFrequencies:
    """The rotary frequencies from torch's powers: the same bits as in transformers."""
    exponents = torch.arange(0, llm.head_dim, 2).float() / llm.head_dim
    return rotary_frequencies(llm, (llm.rope_theta**exponents).numpy())


def rotary(llm: LlmSpec, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency: twice (B,1,S,d), both halves of d alike.

    Both are multiplied by the amplitude that some scalings have.

    Args: positions: (B,S), or (B,S,d/2) where every pair of channels has a position of its own
    """
    turning = frequencies(llm)
    inverse = torch.tensor(turning.inverse, dtype=torch.float32, device=positions.device)
    turns = positions if positions.ndim == 3 else positions[..., None]
    angles = turns[:, None].float() * inverse  # (B,1,S,d/2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * turning.amplitude, angles.sin() * turning.amplitude


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B,H,S,d) by the angles of its positions; channel i is paired with channel i + d/2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


def causal_mask(rows: Tensor, kv_length: int, window: int | None = None) -> Tensor:
    """(S,N), True where row r of `rows` (S,) may see key n: r - window < n <= r."""
    kv_index = torch.arange(kv_length, device=rows.device)
    column = rows[:, None]
    seen = kv_index <= column
    return seen if window is None else seen & (kv_index > column - window)


def unpadded(mask: Tensor, rows: Tensor, padding: Tensor) -> Tensor:
    """A mask (S,N) of `rows` (S,) for sequences of which some of the first M tokens are `padding` (B,M): (B,1,S,N).

    A row of the padding sees itself, so that it has numbers; nothing else sees it.
    """
    length = mask.shape[-1]
    own = ~padding[:, :length]
    own = functional.pad(own, (0, length - own.shape[1]), value=True)
    itself = torch.arange(length, device=mask.device) == rows[:, None]
    return ((mask & own[:, None]) | itself)[:, None]


class KvCache:
    """Keys and values of earlier tokens, layer by layer. Grows by concatenation: simple, not fast.

    padding: (B,M) which of the first M tokens of each sequence are padding, which no token attends to; None: none
    """

    def __init__(self, padding: Tensor | None = None) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.padding = padding

    def length(self, layer: int) -> int:
        """Tokens that this layer has seen."""
        return self._layers[layer][0].shape[2] if layer in self._layers else 0

    def keys(self, layer: int) -> Tensor:
        """(B,H_kv,N,d) of all tokens so far, rotated. Raises KeyError for a layer that has not run."""
        return self._layers[layer][0]

    def fork(self) -> KvCache:
        """A copy that shares the tokens so far; later tokens are added to one of them only."""
        other = KvCache(self.padding)
        other._layers = dict(self._layers)  # `append` replaces tensors and never writes into them
        return other

    def of(self, sequences: Tensor) -> KvCache:
        """A copy of some sequences of the batch, by their indices (b,)."""
        other = KvCache(None if self.padding is None else self.padding[sequences])
        other._layers = {layer: (key[sequences], value[sequences]) for layer, (key, value) in self._layers.items()}
        return other

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every layer."""
        self._layers = {
            layer: (key[:, :, :length], value[:, :, :length]) for layer, (key, value) in self._layers.items()
        }

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B,H_kv,S,d) of the new tokens and return (B,H_kv,N,d) of all."""
        if layer in self._layers:
            old_key, old_value = self._layers[layer]
            key, value = torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)
        self._layers[layer] = key, value
        return key, value


def head_norm(llm: LlmSpec) -> nn.Module:
    """What normalises every query or key head; in most models nothing."""
    return RmsNorm(llm.head_dim, llm.rms_norm_eps) if llm.qk_norm else nn.Identity()


class Attention(nn.Module):
    """Causal self-attention with rotary positions; several query heads may share a key head."""

    def __init__(self, llm: LlmSpec) -> None:
        super().__init__()
        self.llm = llm
        self.q = nn.Linear(llm.width, llm.heads * llm.head_dim, bias=llm.attention_bias)
        self.k = nn.Linear(llm.width, llm.kv_heads * llm.head_dim, bias=llm.attention_bias)
        self.v = nn.Linear(llm.width, llm.kv_heads * llm.head_dim, bias=llm.attention_bias)
        self.q_norm, self.k_norm = head_norm(llm), head_norm(llm)
        self.o = nn.Linear(llm.heads * llm.head_dim, llm.width, bias=False)

    def forward(self, x: Tensor, positions: Tensor, cache: KvCache | None = None, layer: int = 0) -> Tensor:
        """x (B,S,D), positions as `rotary` takes them -> (B,S,D). `layer` is this layer's place in the cache.

        The S rows follow those in the cache, whatever their positions; each attends to the rows before it and to
        itself.
        """
        query, key, value = (self.split_heads(part(x)) for part in (self.q, self.k, self.v))
        cos, sin = rotary(self.llm, positions)
        query, key = rotate(self.q_norm(query), cos, sin), rotate(self.k_norm(key), cos, sin)
        if cache is not None:
            key, value = cache.append(layer, key, value)
        new, length = x.shape[1], key.shape[2]
        rows = torch.arange(length - new, length, device=x.device)
        mask = causal_mask(rows, length, self.llm.sliding_window)
        if cache is not None and cache.padding is not None:
            mask = unpadded(mask, rows, cache.padding)
        shared_heads = self.llm.kv_heads != self.llm.heads
        attended = functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=shared_heads)
        output: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return output

    def split_heads(self, x: Tensor) -> Tensor:
        """(B,S,heads*d) -> (B,heads,S,d)."""
        heads = x.shape[-1] // self.llm.head_dim
        return x.reshape(*x.shape[:2], heads, self.llm.head_dim).transpose(1, 2)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, llm: LlmSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(llm.width, llm.mlp_width, bias=False)
        self.up = nn.Linear(llm.width, llm.mlp_width, bias=False)
        self.down = nn.Linear(llm.mlp_width, llm.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,S,D) -> (B,S,D)."""
        output: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return output


class DecoderLayer(nn.Module):
    """Attention and MLP, each after its norm and added to the residual stream."""

    def __init__(self, llm: LlmSpec) -> None:
        super().__init__()
        self.input_norm = RmsNorm(llm.width, llm.rms_norm_eps)
        self.attention = Attention(llm)
        self.post_norm = RmsNorm(llm.width, llm.rms_norm_eps)
        self.mlp = GatedMlp(llm)

    def forward(self, x: Tensor, positions: Tensor, cache: KvCache | None = None, layer: int = 0) -> Tensor:
        """x (B,S,D), positions as `rotary` takes them -> (B,S,D)."""
        x = x + self.attention(self.input_norm(x), positions, cache, layer)
        output: Tensor = x + self.mlp(self.post_norm(x))
        return output
