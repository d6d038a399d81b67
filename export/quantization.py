"""Matrices in 4 or 8 bits: symmetric, a scale for every block of inputs. NumPy; knows no files and no graphs.

Rows are outputs here (N,K), as in a checkpoint, so that a block is contiguous; the bundle has [K,N].
A scale is rounded to fp16 before the codes are chosen: graphs that compute in fp16 and in fp32 read the same numbers.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.host.suggestion import unknown_choice

__all__ = ["BLOCK_SIZES", "METHODS", "Blocks", "Codes", "Method", "Scales", "dequantized", "quantize"]

Array = npt.NDArray[Any]
Codes = npt.NDArray[np.int8]
Scales = npt.NDArray[np.float16]
Method = Literal["rtn", "hqq", "gptq"]

METHODS: tuple[Method, ...] = get_args(Method)
# Sizes that MatMulNBits and TensorRT accept; 16 is for widths that 32 does not divide.
BLOCK_SIZES = (16, 32, 64, 128)
_ROWS_AT_ONCE = 256  # so that the working set fits in the CPU cache
_FP16_TINY = np.float32(2.0**-24)

# HQQ (Badri and Shaji, 2023): penalty, its growth and the number of steps as in the paper. Its p is 0.7; 3/4 needs
# square roots instead of powers.
_HQQ_NORM, _HQQ_BETA, _HQQ_GROWTH, _HQQ_STEPS = 0.75, 10.0, 1.01, 20
_HQQ_ENOUGH = 0.02  # stop when fewer blocks than this share improve


@dataclass(frozen=True)
class Blocks:
    """How a matrix is quantised."""

    bits: Literal[4, 8]
    size: int = 32  # inputs that share a scale
    method: Method = "rtn"
    calibration: str = ""  # for gptq: a digest of what decides the codes besides the weights

    def __post_init__(self) -> None:
        if self.size not in BLOCK_SIZES:
            raise BadInput(f"block size is {self.size}; expected one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.method not in METHODS:
            raise BadInput(f"method {unknown_choice(self.method, METHODS)}")

    @property
    def largest(self) -> int:
        """The largest code; the smallest is one lower than its negative."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def label(self) -> str:
        """For names of files."""
        return f"int{self.bits}-b{self.size}-{self.method}{self.calibration and '-'}{self.calibration}"

    def require_divides(self, name: str, inputs: int) -> None:
        """Raises BadInput if blocks do not divide the inputs of a matrix."""
        if inputs % self.size:
            fitting = [str(size) for size in BLOCK_SIZES if inputs % size == 0]
            fitting = [size for size in fitting if size != "16"] or fitting
            advice = f"choose blocks of {' or '.join(fitting)}" if fitting else "export it in fp16"
            raise BadInput(
                f"{name} has {inputs} inputs, which blocks of {self.size} do not divide; {advice}",
                options=("block",) if fitting else ("precision fp16",),
            )


def quantize(matrix: Array, blocks: Blocks) -> tuple[Codes, Scales]:
    """matrix (N,K) in any floating-point type -> codes (N,K) and scales (N,K/size), with matrix ~ codes * scale.

    Not for the method gptq, which needs the inputs: see `gptq.py`.
    Raises: BadInput if the blocks do not divide K
    """
    outputs, inputs = matrix.shape
    blocks.require_divides("a matrix", inputs)
    codes = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, inputs // blocks.size), np.float16)

    def some_rows(start: int) -> None:
        rows = slice(start, start + _ROWS_AT_ONCE)
        piece = np.asarray(matrix[rows], np.float32).reshape(-1, inputs // blocks.size, blocks.size)
        found = _scales(piece, blocks)
        scales[rows] = found
        codes[rows] = _codes(piece, found, blocks).reshape(-1, inputs)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy releases the GIL
        list(pool.map(some_rows, range(0, outputs, _ROWS_AT_ONCE)))
    return codes, scales


def dequantized(codes: Codes, scales: Scales) -> npt.NDArray[np.float32]:
    """What a graph computes with: (N,K)."""
    outputs, inputs = codes.shape
    by_block = codes.reshape(outputs, scales.shape[1], -1).astype(np.float32)
    return (by_block * scales.astype(np.float32)[..., None]).reshape(outputs, inputs)


def _scales(piece: npt.NDArray[np.float32], blocks: Blocks) -> Scales:
    """piece (rows, K/size, size) -> (rows, K/size), never zero."""
    scales = np.maximum(np.abs(piece).max(axis=-1) / blocks.largest, _FP16_TINY)
    if blocks.method == "hqq":
        scales = _half_quadratic(piece, scales, blocks)
    return np.asarray(scales, np.float16)


def _codes(piece: npt.NDArray[np.float32], scales: Array, blocks: Blocks) -> npt.NDArray[np.float32]:
    codes: npt.NDArray[np.float32] = np.rint(piece / scales.astype(np.float32)[..., None])
    return np.clip(codes, -blocks.largest - 1, blocks.largest, out=codes)


def _half_quadratic(
    piece: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], blocks: Blocks
) -> npt.NDArray[np.float32]:
    """Scales with a smaller sum of |error|^p, p < 1, which tolerates outliers in favour of the many small weights.

    Alternately split the error into a sparse part (by the shrinkage operator of that norm) and a rest, and fit the
    scale to the rest by least squares. The paper adjusts a zero point; symmetric codes have none, so the scale is
    adjusted.
    """
    beta, best, best_error = _HQQ_BETA, scales, np.full(scales.shape, np.inf, np.float32)
    for _ in range(_HQQ_STEPS):
        codes = _codes(piece, scales.astype(np.float16), blocks)
        error = piece / scales[..., None] - codes  # in units of the scale
        size = np.abs(error)
        root = np.sqrt(np.sqrt(np.maximum(size, np.float32(1e-8))))
        total = scales**_HQQ_NORM * (root * root * root).mean(axis=-1)
        better = total < best_error
        if better.mean() < _HQQ_ENOUGH:
            break
        best, best_error = np.where(better, scales, best), np.where(better, total, best_error)
        shrunk = np.copysign(np.maximum(size - 1 / (np.float32(beta) * root), np.float32(0)), error)
        energy = np.einsum("nbk,nbk->nb", codes, codes)
        wanted = np.einsum("nbk,nbk->nb", codes, codes + error - shrunk)
        scales = (scales * wanted / np.maximum(energy, 1)).astype(np.float32)
        scales = np.maximum(scales, _FP16_TINY)
        beta *= _HQQ_GROWTH
    return best
