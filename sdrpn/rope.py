"""Rotary frequencies: how far each pair of channels turns from one position to the next. NumPy only.

One formula for the model in PyTorch and for the tables of the exported graphs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sdrpn.spec import LlmSpec, RopeScaling

__all__ = ["inverse_frequencies"]

Array = npt.NDArray[np.float32]


def inverse_frequencies(llm: LlmSpec) -> Array:
    """(head_dim/2,) radians per position (Su et al. 2021), stretched as the checkpoint says."""
    exponents = np.arange(0, llm.head_dim, 2, dtype=np.float32) / np.float32(llm.head_dim)
    frequencies: Array = (1.0 / np.float32(llm.rope_theta) ** exponents).astype(np.float32)
    scaling = llm.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        stretched: Array = frequencies / np.float32(scaling.factor)
        return stretched
    return _stretched_by_wavelength(frequencies, scaling)


def _stretched_by_wavelength(frequencies: Array, scaling: RopeScaling) -> Array:
    """Llama 3: waves that turn often within the original context stay, slow ones are divided by `factor`.

    Those between are blended linearly.
    """
    turns = np.float32(scaling.original_context) * frequencies / np.float32(2 * np.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    stretched: Array = (kept * frequencies + (1.0 - kept) * frequencies / scaling.factor).astype(np.float32)
    return stretched
