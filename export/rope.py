"""Rotary tables: cos and sin of position x frequency, (max_context, head_dim/2). NumPy only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdrpn.export.weights import ArrayReader, Weight, plain
from sdrpn.spec import LlmSpec, RopeScaling

__all__ = ["rope_reader", "rope_weights"]

Array = npt.NDArray[np.float32]


def rope_weights(llm: LlmSpec, max_context: int) -> list[Weight]:
    """Names and shapes of the two tables."""
    shape = (max_context, llm.head_dim // 2)
    return [plain(name, [name], shape) for name in ("rope.cos", "rope.sin")]


def rope_reader(llm: LlmSpec, max_context: int) -> ArrayReader:
    """The two tables, computed."""
    angles = np.arange(max_context, dtype=np.float32)[:, None] * inverse_frequencies(llm)[None]
    return ArrayReader({"rope.cos": np.cos(angles), "rope.sin": np.sin(angles)})


def inverse_frequencies(llm: LlmSpec) -> Array:
    """(head_dim/2,) radians per position (RoFormer), stretched as the checkpoint says."""
    exponents = np.arange(0, llm.head_dim, 2, dtype=np.float32) / np.float32(llm.head_dim)
    frequencies: Array = (1.0 / np.float32(llm.rope_theta) ** exponents).astype(np.float32)
    scaling = llm.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    return _stretched_by_wavelength(frequencies, scaling)


def _stretched_by_wavelength(frequencies: Array, scaling: RopeScaling) -> Array:
    """Llama 3: long wavelengths are divided by `factor`, short ones kept, those between blended linearly."""
    turns = np.float32(scaling.original_context) * frequencies / np.float32(2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    stretched: Array = (kept * frequencies + (1.0 - kept) * frequencies / scaling.factor).astype(np.float32)
    return stretched
