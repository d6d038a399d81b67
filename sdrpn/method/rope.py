"""Rotary frequencies: how far each pair of channels turns from one position to the next. NumPy only.

One formula for the model in PyTorch and for the tables of the exported graphs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sdrpn.method.spec import LlmSpec, RopeScaling

__all__ = ["inverse_frequencies", "rope_amplitude"]

Array = npt.NDArray[np.float32]


def inverse_frequencies(llm: LlmSpec) -> Array:
    """(head_dim/2,) radians per position (Su et al. 2021), stretched as the checkpoint says."""
    exponents = np.arange(0, llm.head_dim, 2, dtype=np.float32) / np.float32(llm.head_dim)
    frequencies: Array = (1.0 / np.float32(llm.rope_theta) ** exponents).astype(np.float32)
    scaling = llm.rope_scaling
    if scaling is None or scaling.kind == "dynamic":  # which changes nothing within the original context
        return frequencies
    if scaling.kind == "linear":
        stretched: Array = frequencies / np.float32(scaling.factor)
        return stretched
    if scaling.kind == "yarn":
        return _stretched_by_channel(frequencies, llm, scaling)
    return _stretched_by_wavelength(frequencies, scaling)


def rope_amplitude(llm: LlmSpec) -> float:
    """What cosines and sines are multiplied by."""
    return 1.0 if llm.rope_scaling is None else llm.rope_scaling.amplitude


def _stretched_by_wavelength(frequencies: Array, scaling: RopeScaling) -> Array:
    """Llama 3: waves that turn often within the original context stay, slow ones are divided by `factor`.

    Those between are blended linearly.
    """
    turns = np.float32(scaling.original_context) * frequencies / np.float32(2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    stretched: Array = (kept * frequencies + (1.0 - kept) * frequencies / scaling.factor).astype(np.float32)
    return stretched


def _stretched_by_channel(frequencies: Array, llm: LlmSpec, scaling: RopeScaling) -> Array:
    """YaRN (Peng et al. 2023): between two channels, found from the turns that their waves make within the original
    context, the frequencies go over from kept to divided by `factor`, linearly in the channel's number."""

    def channel(turns: float) -> float:
        waves = scaling.original_context / (turns * 2 * math.pi)
        return llm.head_dim * math.log(waves) / (2 * math.log(llm.rope_theta))

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, llm.head_dim - 1)
    last += 0.001 if first == last else 0.0  # transformers' own way around a division by 0
    ramp = (np.arange(llm.head_dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    divided = np.clip(ramp, 0.0, 1.0)
    stretched: Array = (divided * frequencies / np.float32(scaling.factor) + (1.0 - divided) * frequencies).astype(
        np.float32
    )
    return stretched
