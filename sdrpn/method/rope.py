"""Rotary embedding: the frequency of each pair of channels, and cos and sin tables for any positions. NumPy only.

The frequencies of a model are computed once, at export, and stored: powers differ between libraries in the last bit,
which long contexts amplify (2e-3 in a cosine at position 32,768). Knows no model family: a position is a number, or a
number on each of several axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.method.spec import LlmSpec, RopeScaling

__all__ = ["RotaryFrequencies", "rotary_frequencies", "rotary_powers"]

Array = npt.NDArray[np.float32]
Positions = npt.NDArray[np.integer[Any] | np.floating[Any]]


@dataclass(frozen=True)
class RotaryFrequencies:
    """Radians per position of the d/2 pairs of channels of a head, and the factor of cosines and sines.

    Every frequency is a float32, so that its decimal digits in a manifest determine its bits.
    """

    inverse: tuple[float, ...]
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        for frequency in self.inverse:
            if not 0 < frequency < math.inf or float(np.float32(frequency)) != frequency:
                raise BadInput(f"{frequency!r} is not a rotary frequency; expected a float32 above 0")
        if not 0 < self.amplitude < math.inf:
            raise BadInput(f"the amplitude of rotary tables is {self.amplitude!r}; expected a number above 0")

    def tables(self, positions: Positions, axis_of: npt.NDArray[np.integer[Any]] | None = None) -> tuple[Array, Array]:
        """Cos and sin of every position, (S,d/2) each.

        Angles are products in float32, as in transformers; cosines are those of the float32 angles, correctly rounded.

        Args:
            positions: (S,), or (axes,S): integers or fractions
            axis_of: (d/2,), the axis of each pair of channels; needed for positions on axes
        Raises: BadInput for positions on axes without `axis_of`, or the reverse
        """
        if positions.ndim != (1 if axis_of is None else 2):
            expected = "(S,)" if axis_of is None else "(axes,S)"
            raise BadInput(f"positions have the shape {positions.shape}; expected {expected}")
        # (S,1), or (S,d/2) if every pair of channels has its own position
        turns = (positions[:, None] if axis_of is None else positions[axis_of].T).astype(np.float32)
        angles = (turns * np.array(self.inverse, np.float32)).astype(np.float64)
        amplitude = np.float32(self.amplitude)
        return np.cos(angles).astype(np.float32) * amplitude, np.sin(angles).astype(np.float32) * amplitude


def rotary_powers(llm: LlmSpec) -> Array:
    """(d/2,) theta^(2i/d) (Su et al. 2021), correctly rounded: within one unit in the last place of any library's."""
    exponents = np.arange(0, llm.head_dim, 2, dtype=np.float32) / np.float32(llm.head_dim)
    powers: Array = (np.float64(llm.rope_theta) ** exponents.astype(np.float64)).astype(np.float32)
    return powers


def rotary_frequencies(llm: LlmSpec, powers: Array) -> RotaryFrequencies:
    """The reciprocals of `powers`, scaled as the checkpoint specifies.

    Computed in float32 and in transformers' order of operations, so that equal powers give equal bits.
    """
    scaling = llm.rope_scaling
    amplitude = 1.0 if scaling is None else scaling.amplitude
    inverse = (np.float32(1) / powers).astype(np.float32)
    if scaling is not None and scaling.kind == "linear":
        inverse = inverse / np.float32(scaling.factor)
    elif scaling is not None and scaling.kind == "yarn":
        inverse = _stretched_by_channel(powers, llm, scaling)
    elif scaling is not None and scaling.kind == "llama3":
        inverse = _stretched_by_wavelength(inverse, scaling)
    # "dynamic" changes nothing within the original context.
    return RotaryFrequencies(tuple(float(frequency) for frequency in inverse), amplitude)


def _stretched_by_wavelength(inverse: Array, scaling: RopeScaling) -> Array:
    """Llama 3: frequencies with many turns within the original context are kept, slow ones are divided by `factor`.

    Between them the two are blended linearly.
    """
    one, factor = np.float32(1), np.float32(scaling.factor)
    # torch divides a number by an array as number * reciprocal: two roundings.
    waves = one / inverse * np.float32(2 * math.pi)
    turns = one / waves * np.float32(scaling.original_context)
    kept = (turns - np.float32(scaling.low_freq_factor)) / np.float32(
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (one - kept) * inverse / factor + kept * inverse
    slow = waves > np.float32(scaling.original_context / scaling.low_freq_factor)
    fast = waves < np.float32(scaling.original_context / scaling.high_freq_factor)
    stretched: Array = np.where(slow, inverse / factor, np.where(fast, inverse, blended))
    return stretched


def _stretched_by_channel(powers: Array, llm: LlmSpec, scaling: RopeScaling) -> Array:
    """YaRN (Peng et al. 2023): between two channels, given by the number of turns within the original context, the
    frequencies change from kept to divided by `factor`, linearly in the channel's index."""

    def channel(turns: float) -> float:
        waves = scaling.original_context / (turns * 2 * math.pi)
        return llm.head_dim * math.log(waves) / (2 * math.log(llm.rope_theta))

    first, last = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, llm.head_dim - 1)
    last += 0.001 if first == last else 0.0  # as in transformers, to avoid a division by 0
    one = np.float32(1)
    ramp = (np.arange(llm.head_dim // 2, dtype=np.float32) - np.float32(first)) / np.float32(last - first)
    kept = one - np.clip(ramp, np.float32(0), one)
    stretched: Array = one / (np.float32(scaling.factor) * powers) * (one - kept) + one / powers * kept
    return stretched
