"""Matrices in floating-point numbers of 8 and 4 bits, as recent GPUs have them. NumPy; knows no files and no graphs.

Rows are outputs here (N,K), as in `quantization.py`.

    fp8    E4M3, a scale for every output
    nvfp4  E2M1, an E4M3 scale for every block of 16 inputs, and one factor for the whole matrix
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput

__all__ = ["FP8_MAX", "Float4", "Float8", "matrix_factor"]

Array = npt.NDArray[Any]

FP8_MAX, FP4_MAX = 448.0, 6.0
_BLOCK = 16
_FP16_TINY = np.float32(2.0**-24)
_FP8_TINY = np.float32(2.0**-9)
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Float8:
    """E4M3 with an fp16 scale for every output."""

    @property
    def label(self) -> str:
        """For names of files."""
        return "fp8"

    def quantize(self, matrix: Array) -> tuple[Array, Array]:
        """matrix (N,K) -> codes (N,K) float8_e4m3fn and scales (N) float16, with matrix ~ codes * scale."""
        codes = np.empty(matrix.shape, ml_dtypes.float8_e4m3fn)
        scales = np.empty(len(matrix), np.float16)
        for rows in _pieces(len(matrix)):
            piece = np.asarray(matrix[rows], np.float32)
            scales[rows] = np.maximum(np.abs(piece).max(axis=1) / FP8_MAX, _FP16_TINY)
            steps = scales[rows].astype(np.float32)[:, None]
            # Beyond the largest number there is no infinity, only NaN: a rounded scale must not lead there.
            codes[rows] = np.clip(piece / steps, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
        return codes, scales

    def dequantized(self, codes: Array, scales: Array) -> npt.NDArray[np.float32]:
        """What a graph computes with: (N,K)."""
        numbers: npt.NDArray[np.float32] = codes.astype(np.float32) * scales.astype(np.float32)[:, None]
        return numbers


@dataclass(frozen=True)
class Float4:
    """E2M1 in blocks of 16, whose E4M3 scales are multiples of one factor."""

    @property
    def label(self) -> str:
        """For names of files."""
        return "nvfp4"

    def require_divides(self, name: str, inputs: int) -> None:
        """Raises BadInput where the inputs of a matrix are no whole number of blocks."""
        if inputs % _BLOCK:
            raise BadInput(f"{name} has {inputs} inputs, which blocks of {_BLOCK} do not divide; export it in fp8")

    def quantize(self, matrix: Array, factor: float) -> tuple[Array, Array]:
        """matrix (N,K) -> codes (N,K) float4_e2m1fn, scales (N,K/16) float8_e4m3fn; matrix ~ codes * scale * factor."""
        outputs, inputs = matrix.shape
        self.require_divides("a matrix", inputs)
        codes = np.empty(matrix.shape, ml_dtypes.float4_e2m1fn)
        scales = np.empty((outputs, inputs // _BLOCK), ml_dtypes.float8_e4m3fn)
        for rows in _pieces(outputs):
            piece = np.asarray(matrix[rows], np.float32).reshape(-1, inputs // _BLOCK, _BLOCK)
            wanted = np.abs(piece).max(axis=-1) / (FP4_MAX * factor)
            scales[rows] = np.clip(wanted, _FP8_TINY, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
            steps = scales[rows].astype(np.float32)[..., None] * np.float32(factor)
            small = np.clip(piece / steps, -FP4_MAX, FP4_MAX).astype(ml_dtypes.float4_e2m1fn)
            codes[rows] = small.reshape(-1, inputs)
        return codes, scales

    def dequantized(self, codes: Array, scales: Array, factor: float) -> npt.NDArray[np.float32]:
        """What a graph computes with: (N,K)."""
        by_block = codes.astype(np.float32).reshape(*scales.shape, _BLOCK)
        numbers: npt.NDArray[np.float32] = by_block * (scales.astype(np.float32) * np.float32(factor))[..., None]
        return numbers.reshape(codes.shape)


def matrix_factor(matrices: Sequence[Array]) -> float:
    """A power of two, so that scales are the same numbers in any type: the least for which the largest one fits."""
    largest = max((float(np.abs(np.asarray(matrix, np.float32)).max(initial=0)) for matrix in matrices), default=0.0)
    if not math.isfinite(largest):
        return 1.0  # the scales will not be finite, which is found where they are
    if largest == 0:
        return 1.0
    return max(2.0 ** math.ceil(math.log2(largest / (FP4_MAX * FP8_MAX))), float(_FP16_TINY))


def _pieces(rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_AT_ONCE) for start in range(0, rows, _ROWS_AT_ONCE)]
