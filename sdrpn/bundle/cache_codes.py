"""The KV cache in 8 bits: codes and scales, in NumPy. The graphs compute the same; tests compare both.

Every row of every head has its own scale, computed from the row when it is written: nothing is calibrated, and no row
changes when others are added. A cache `key_cache.3` of codes (B,H_kv,S_max,head_dim) goes with a cache
`key_scale_cache.3` (B,H_kv,S_max,1) in the type that the graph computes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.bundle.number_types import numpy_type
from sdrpn.bundle.numerics import CACHE_FORMS, CacheForm, cache_form

__all__ = ["LEAST_SCALE", "ROW_CODES", "RowCodes", "decoded_caches", "row_codes"]

Array = npt.NDArray[Any]

# The least scale, far below those of real keys and values. In fp16 the smallest numbers are multiples of 2^-24: such a
# scale would be rounded so far that codes exceed the largest one.
LEAST_SCALE = 2.0**-17


@dataclass(frozen=True)
class RowCodes:
    """A form of the KV cache: a row is codes times a scale."""

    form: CacheForm

    @property
    def dtype(self) -> str:
        """The type of the codes, as a manifest spells it."""
        return self.form.dtype

    @property
    def largest(self) -> float:
        """The largest code."""
        return self.form.largest

    def encoded(self, rows: Array, scale_dtype: str) -> tuple[Array, Array]:
        """rows (...,head_dim) -> codes (...,head_dim), as bytes if NumPy lacks the type, and scales (...,1)."""
        scales = np.maximum(np.abs(rows).max(axis=-1, keepdims=True) / self.largest, LEAST_SCALE).astype(scale_dtype)
        numbers = np.clip(rows / scales.astype(np.float32), -self.largest, self.largest)
        if self.dtype == "int8":
            return np.rint(numbers).astype(np.int8), scales
        return numbers.astype(numpy_type(self.dtype)).view(np.uint8), scales

    def decoded(self, codes: Array, scales: Array) -> npt.NDArray[np.float32]:
        """The rows that a graph computes with: the inverse of `encoded`, except for rounding."""
        numbers = codes if self.dtype == "int8" else codes.view(numpy_type(self.dtype))
        rows: npt.NDArray[np.float32] = numbers.astype(np.float32) * scales.astype(np.float32)
        return rows


ROW_CODES: Mapping[str, RowCodes] = {name: RowCodes(form) for name, form in CACHE_FORMS.items()}


def row_codes(name: str | None) -> RowCodes | None:
    """The form by its name; None: caches in the type that the graph computes in. Raises BadInput for an unknown
    name."""
    form = cache_form(name)
    return None if form is None else ROW_CODES[form.name]


def decoded_caches(codes: RowCodes, tensors: Mapping[str, Array], scales: Mapping[str, str]) -> dict[str, Array]:
    """The same tensors by name, with codes and scales replaced by the rows that they stand for.

    Args:
        scales: names of codes -> names of their scales, see `GraphSignature.scales`; pairs not among `tensors` are
            ignored
    """
    scales = {name: scale for name, scale in scales.items() if name in tensors and scale in tensors}
    return {
        name: codes.decoded(array, tensors[scales[name]]) if name in scales else array
        for name, array in tensors.items()
        if name not in scales.values()
    }
