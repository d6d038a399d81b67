"""Pillow's antialiased resize along one axis, for a part of the output or where most of the input is one colour.

Pillow resizes whole pictures. This reads only the pixels that contribute, with Pillow's weights in its fixed-point
format, so that the result is byte-identical. NumPy only; slower per pixel than Pillow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["bicubic", "resample_columns", "windows"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Kernel = Callable[[Floats], Floats]

_PRECISION_BITS = 22  # 32 bits less 8 of a byte and 2 for overflow of sums, as in Pillow
_OUTPUTS_AT_ONCE = 8  # their windows overlap: one matrix product with few zeros
_SUPPORT = 2.0  # of the bicubic kernel, in output pixels


def bicubic(x: Floats) -> Floats:
    """Pillow's bicubic kernel, a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def windows(in_size: int, out_size: int, outputs: range) -> Iterator[tuple[int, Floats]]:
    """For each output pixel, its first contributing input pixel and the integer weights, in units of 2**-22."""
    scale = in_size / out_size
    spread = max(scale, 1.0)
    for place in outputs:
        centre = (place + 0.5) * scale
        first = max(0, int(centre - _SUPPORT * spread + 0.5))
        last = min(in_size, int(centre + _SUPPORT * spread + 0.5))
        weights = bicubic((np.arange(first, last, dtype=np.float64) - centre + 0.5) / spread)
        weights /= weights.sum()
        yield first, np.trunc(weights * (1 << _PRECISION_BITS) + np.where(weights < 0, -0.5, 0.5))


def resample_columns(
    pixels: Bytes, left: int, in_size: int, out_size: int, outputs: range, colour: tuple[int, int, int] = (0, 0, 0)
) -> Bytes:
    """Resize rows of `in_size` pixels that hold `pixels` (H, W, 3) from column `left` on and `colour` elsewhere.

    Returns: (H, len(outputs), 3), the pixels `outputs` of `out_size`.
    """
    height, width, _ = pixels.shape
    # Sums of products of integers stay below 2**53, so they are exact in any order.
    rows = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float64).reshape(-1, width)
    ground = np.repeat(np.array(colour, np.float64), height)[:, None]
    found = []
    for start in range(0, len(outputs), _OUTPUTS_AT_ONCE):
        low, high, weights, outside = _weights(
            left, width, in_size, out_size, outputs[start : start + _OUTPUTS_AT_ONCE]
        )
        found.append(rows[:, low:high] @ weights + ground * outside)
    sums = np.concatenate(found, axis=1) + (1 << (_PRECISION_BITS - 1))
    bytes_ = np.clip(np.floor(sums / (1 << _PRECISION_BITS)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(bytes_.reshape(3, height, -1).transpose(1, 2, 0))


def _weights(left: int, width: int, in_size: int, out_size: int, outputs: range) -> tuple[int, int, Floats, Floats]:
    """For some outputs: the contributing columns, their (columns, outputs) weights, and weight sums outside."""
    found = list(windows(in_size, out_size, outputs))
    low = min(max(found[0][0] - left, 0), width)
    high = max(low, min(found[-1][0] + len(found[-1][1]) - left, width))
    matrix, outside = np.zeros((high - low, len(found))), np.empty(len(found))
    for number, (first, weights) in enumerate(found):
        start, stop = max(first - left, low), min(first + len(weights) - left, high)
        inside = weights[start + left - first : stop + left - first] if start < stop else weights[:0]
        matrix[start - low : start - low + len(inside), number] = inside
        outside[number] = weights.sum() - inside.sum()
    return low, high, matrix, outside
