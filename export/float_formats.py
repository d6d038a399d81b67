"""Matrices in the 8-bit and 4-bit floating-point formats of recent GPUs. NumPy; knows no files and no graphs.

Rows are outputs here (N,K), as in `quantization.py`.

    fp8    E4M3 times one factor
    nvfp4  E2M1 times an E4M3 scale for every block of 16 inputs, times one factor

Factors are powers of two, which are exact in any type. One per matrix is enough: E4M3 numbers, and E4M3 scales, span 15
powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput

__all__ = ["FP4_BLOCK", "FP4_MAX", "FP8_MAX", "FP8_TINY", "Float4", "Float8", "largest_of"]

Array = npt.NDArray[Any]

FP8_MAX, FP8_TINY, FP4_MAX = 448.0, 2.0**-9, 6.0
FP4_BLOCK = 16
_FP16_TINY = 2.0**-24
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Float8:
    """E4M3 times one factor."""

    @property
    def label(self) -> str:
        """For names of files."""
        return "fp8"

    def factor(self, largest: float) -> float:
        """The least for which numbers up to `largest` fit."""
        return _power_of_two(largest / FP8_MAX)

    def quantize(self, matrix: Array, factor: float) -> tuple[Array]:
        """matrix (N,K) -> codes (N,K) float8_e4m3fn, with matrix ~ codes * factor."""
        codes = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn)
        for rows in _pieces(len(matrix)):
            codes[rows] = np.asarray(matrix[rows], np.float32) / np.float32(factor)
        return (codes,)

    def dequantized(self, codes: Array, factor: float) -> npt.NDArray[np.float32]:
        """What a graph computes with: (N,K)."""
        numbers: npt.NDArray[np.float32] = codes.astype(np.float32) * np.float32(factor)
        return numbers


@dataclass(frozen=True)
class Float4:
    """E2M1 in blocks of 16, whose E4M3 scales are multiples of one factor."""

    @property
    def label(self) -> str:
        """For names of files."""
        return "nvfp4"

    def factor(self, largest: float) -> float:
        """The least for which numbers up to `largest` fit."""
        return _power_of_two(largest / (FP4_MAX * FP8_MAX))

    def require_divides(self, name: str, inputs: int) -> None:
        """Raises BadInput if blocks do not divide the inputs of a matrix."""
        if inputs % FP4_BLOCK:
            raise BadInput(f"{name} has {inputs} inputs, which blocks of {FP4_BLOCK} do not divide; export it in fp8")

    def quantize(self, matrix: Array, factor: float) -> tuple[Array, Array]:
        """matrix (N,K) -> codes (N,K) float4_e2m1fn, scales (N,K/16) float8_e4m3fn; matrix ~ codes * scale * factor."""
        outputs, inputs = matrix.shape
        self.require_divides("a matrix", inputs)
        codes = np.empty(matrix.shape, ml_dtypes.float4_e2m1fn)
        scales = np.empty((outputs, inputs // FP4_BLOCK), ml_dtypes.float8_e4m3fn)
        for rows in _pieces(outputs):
            piece = np.asarray(matrix[rows], np.float32).reshape(-1, inputs // FP4_BLOCK, FP4_BLOCK)
            wanted = np.abs(piece).max(axis=-1) / (FP4_MAX * factor)
            scales[rows] = np.clip(wanted, FP8_TINY, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
            steps = scales[rows].astype(np.float32)[..., None] * np.float32(factor)
            # After rounding, a scale may be too small for the largest number of its block.
            small = np.clip(piece / steps, -FP4_MAX, FP4_MAX).astype(ml_dtypes.float4_e2m1fn)
            codes[rows] = small.reshape(-1, inputs)
        return codes, scales

    def dequantized(self, codes: Array, scales: Array, factor: float) -> npt.NDArray[np.float32]:
        """What a graph computes with: (N,K)."""
        by_block = codes.astype(np.float32).reshape(*scales.shape, FP4_BLOCK)
        numbers: npt.NDArray[np.float32] = by_block * (scales.astype(np.float32) * np.float32(factor))[..., None]
        return numbers.reshape(codes.shape)


def largest_of(matrices: Iterable[Array]) -> float:
    """The largest absolute value of all; not finite if one of them is not."""
    return max((float(np.abs(np.asarray(matrix, np.float32)).max(initial=0)) for matrix in matrices), default=0.0)


def _power_of_two(least: float) -> float:
    """The smallest power of two that is at least `least`, within fp16."""
    if not math.isfinite(least) or least == 0:
        return 1.0  # values that are not finite are reported elsewhere
    return max(2.0 ** math.ceil(math.log2(least)), _FP16_TINY)


def _pieces(rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE)]
