"""GPTQ: codes that compensate each other's rounding errors, given a matrix's inputs. NumPy; knows no files.

GPTQ (Frantar et al., 2022): columns are rounded one by one, and later columns compensate the error of earlier ones as
far as the inputs allow. Symmetric blocks as in `quantization.py`, in the columns' own order. Existing
libraries hold the whole model in memory; this needs one matrix at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sdrpn.errors import RunFailed
from sdrpn.export.quantization import Blocks, Codes, Scales

__all__ = ["quantize_for_inputs"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_DAMPING = 0.01  # of the mean of the diagonal, as in the paper; increased if that is not enough
_MOST_DAMPING = 1.0
_SHRINKS = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # of a block's range: clipping in exchange for finer steps
_FP16_TINY = np.float32(2.0**-24)


def quantize_for_inputs(matrix: Array, second_moment: Floats, blocks: Blocks) -> tuple[Codes, Scales]:
    """matrix (N,K) -> codes (N,K), scales (N,K/size).

    Args:
        second_moment: (K,K), the mean of x x^T over the inputs x that the matrix is multiplied with
    Raises: BadInput if the blocks do not divide K; RunFailed if the moments are not finite
    """
    outputs, inputs = matrix.shape
    blocks.require_divides("a matrix", inputs)
    left = np.array(matrix, np.float32)  # columns still to be rounded, corrected for earlier errors
    factor, weight = _inverse_factor(second_moment), np.diagonal(second_moment).astype(np.float32)
    codes = np.empty((outputs, inputs), np.int8)
    scales = np.empty((outputs, inputs // blocks.size), np.float16)
    for start in range(0, inputs, blocks.size):
        block = slice(start, start + blocks.size)
        scales[:, start // blocks.size] = scale = _best_scale(left[:, block], weight[block], blocks)
        codes[:, block], errors = _round(left[:, block], scale, factor[block, block], blocks)
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return codes, scales


def _round(piece: Floats, scale: Scales, factor: Floats, blocks: Blocks) -> tuple[Codes, Floats]:
    """piece (N,size) -> codes, and errors (N,size) for later columns to compensate."""
    steps = scale.astype(np.float32)
    codes, errors = np.empty(piece.shape, np.int8), np.empty_like(piece)
    for column in range(blocks.size):
        code = np.clip(np.rint(piece[:, column] / steps), -blocks.largest - 1, blocks.largest)
        codes[:, column] = code
        errors[:, column] = (piece[:, column] - code * steps) / factor[column, column]
        piece[:, column + 1 :] -= np.outer(errors[:, column], factor[column, column + 1 :])
    return codes, errors


def _best_scale(piece: Floats, weight: Floats, blocks: Blocks) -> Scales:
    """The scale (N) with the least error, columns weighted by the size of their inputs."""
    whole = np.maximum(np.abs(piece).max(axis=1) / blocks.largest, _FP16_TINY)
    best: Scales = whole.astype(np.float16)
    least = np.full(len(piece), np.inf, np.float32)
    for shrink in _SHRINKS:
        scale = np.maximum(whole * shrink, _FP16_TINY).astype(np.float16)
        steps = scale.astype(np.float32)[:, None]
        code = np.clip(np.rint(piece / steps), -blocks.largest - 1, blocks.largest)
        error = np.square(piece - code * steps) @ weight
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def _inverse_factor(second_moment: Floats) -> Floats:
    """Upper U with U^T U = (second_moment + damping)^-1."""
    mean = float(np.diagonal(second_moment).mean())
    if not np.isfinite(second_moment).all() or mean < 0:
        raise RunFailed("calibration gave moments that are not finite; check the checkpoint with sdrpn verify")
    damping = _DAMPING
    while True:
        damped = second_moment + np.eye(len(second_moment), dtype=np.float32) * (damping * mean or 1.0)
        try:
            lower = np.linalg.cholesky(np.linalg.inv(damped))
        except np.linalg.LinAlgError:  # too close to singular for float32
            if damping >= _MOST_DAMPING:
                raise RunFailed("calibration gave moments that cannot be inverted; use more or other prompts") from None
            damping *= 10
        else:
            return np.ascontiguousarray(lower.T)
