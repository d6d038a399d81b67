"""The whole model in NumPy, in float64, without caches: what the runtime is compared with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from sdrpn.method.spec import ModelSpec

Floats = npt.NDArray[np.float64]


class NumpyModel:
    def __init__(self, spec: ModelSpec, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self.spec = spec
        self._t = {name: values.astype(np.float64) for name, values in tensors.items()}

    def tokens_of(self, patches: npt.NDArray[np.float32], places: npt.NDArray[np.float32]) -> Floats:
        """One look -> (cells,D)."""
        t = self._t
        tokens: Floats = (
            patches[0] @ t["vision.patch.weight"].T + places[0] @ t["vision.place.weight"].T + t["vision.patch.bias"]
        )
        return tokens

    def embedded(self, ids: tuple[int, ...]) -> Floats:
        return self._t["llm.embed.weight"][list(ids)]

    def tap(self, x: Floats, positions: npt.NDArray[np.int64]) -> Floats:
        """(S,D) after the trunk; positions (3,S)."""
        return self._layers(x, positions, "llm.layers", range(self.spec.tap_layer))

    def logits(self, tap: Floats, positions: npt.NDArray[np.int64]) -> Floats:
        """(V,) of the last row."""
        x = self._layers(tap, positions, "llm.layers", range(self.spec.tap_layer, self.spec.llm.layers))
        row: Floats = self._norm(x[-1], "llm.norm.weight") @ self._t["llm.head.weight"].T
        return row

    def roi_logits(self, tap: Floats, positions: npt.NDArray[np.int64], cells: slice) -> Floats:
        """(cells,): the last row against the image's, mean over heads, not rotated."""
        llm, rpn = self.spec.llm, self.spec.rpn
        assert rpn is not None
        last = f"rpn.layers.{rpn.layers - 1}"
        x = self._layers(tap, positions, "rpn.layers", range(rpn.layers - 1))
        x = self._norm(self._norm(x, "rpn.norm.weight"), f"{last}.input_norm.weight")
        query = (x[-1] @ self._t[f"{last}.attention.q.weight"].T).reshape(llm.heads, llm.head_dim)
        keys = (x[cells] @ self._t[f"{last}.attention.k.weight"].T).reshape(-1, llm.kv_heads, llm.head_dim)
        keys = keys.repeat(llm.heads // llm.kv_heads, axis=1)
        scores: Floats = np.einsum("hd,nhd->hn", query, keys) / np.sqrt(llm.head_dim)
        mean: Floats = scores.mean(axis=0)
        return mean

    def _layers(self, x: Floats, positions: npt.NDArray[np.int64], prefix: str, numbers: range) -> Floats:
        for number in numbers:
            name, t = f"{prefix}.{number}", self._t
            x = x + self._attended(self._norm(x, f"{name}.input_norm.weight"), positions, f"{name}.attention")
            normed = self._norm(x, f"{name}.post_norm.weight")
            gate = normed @ t[f"{name}.mlp.gate.weight"].T
            inner = gate / (1 + np.exp(-gate)) * (normed @ t[f"{name}.mlp.up.weight"].T)
            x = x + inner @ t[f"{name}.mlp.down.weight"].T
        return x

    def _attended(self, x: Floats, positions: npt.NDArray[np.int64], name: str) -> Floats:
        llm, t = self.spec.llm, self._t
        query, key, value = (x @ t[f"{name}.{part}.weight"].T for part in "qkv")
        query = self._turned(query.reshape(len(x), llm.heads, -1), positions)
        key = self._turned(key.reshape(len(x), llm.kv_heads, -1), positions)
        shared = llm.heads // llm.kv_heads
        key, value = (part.reshape(len(x), llm.kv_heads, -1).repeat(shared, axis=1) for part in (key, value))
        scores = np.einsum("shd,nhd->hsn", query, key) / np.sqrt(llm.head_dim)
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed: Floats = np.einsum("hsn,nhd->shd", weights, value).reshape(len(x), -1) @ t[f"{name}.o.weight"].T
        return mixed

    def _turned(self, heads: Floats, positions: npt.NDArray[np.int64]) -> Floats:
        """(S,H,d): each pair of channels by the position on its own axis: 0, 1, 2, 0, 1, 2, ..."""
        half = self.spec.llm.head_dim // 2
        pairs = np.arange(half)
        angles = positions[pairs % 3].T * self.spec.llm.rope_theta ** (-pairs / half)  # (S,d/2)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        first, second = heads[..., :half], heads[..., half:]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)

    def _norm(self, x: Floats, name: str) -> Floats:
        normed: Floats = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.spec.llm.rms_norm_eps)
        return normed * self._t[name]
