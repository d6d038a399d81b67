"""Rotary tables: cos and sin of position x frequency, (max_context, head_dim/2). NumPy only."""

from __future__ import annotations

import numpy as np

from sdrpn.export.weights import ArrayReader, Weight, plain
from sdrpn.method.rope import inverse_frequencies, rope_amplitude
from sdrpn.method.spec import LlmSpec

__all__ = ["rope_reader", "rope_weights"]


def rope_weights(llm: LlmSpec, max_context: int) -> list[Weight]:
    """Names and shapes of the two tables."""
    shape = (max_context, llm.head_dim // 2)
    return [plain(name, [name], shape) for name in ("rope.cos", "rope.sin")]


def rope_reader(llm: LlmSpec, max_context: int) -> ArrayReader:
    """The two tables, computed."""
    angles = np.arange(max_context, dtype=np.float32)[:, None] * inverse_frequencies(llm)[None]
    amplitude = np.float32(rope_amplitude(llm))
    return ArrayReader({"rope.cos": np.cos(angles) * amplitude, "rope.sin": np.sin(angles) * amplitude})
