"""Check that weights are finite: a NaN or an infinity anywhere makes every answer noise. NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["count_not_finite"]

# Mask of the exponent bits, which are all set only in NaN and infinities, and the integer type of the same width.
_EXPONENTS = {
    "float16": (np.uint16, 0x7C00),
    "bfloat16": (np.uint16, 0x7F80),
    "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
}
_PIECE_NUMBERS = 1 << 20  # so that the temporaries of the comparison fit in the CPU's cache


def count_not_finite(array: NDArray[Any]) -> int:
    """How many values of an array are NaN or infinite; for the dtypes that weights have."""
    integer, exponent = _EXPONENTS[array.dtype.name]
    bits = np.ascontiguousarray(array).reshape(-1).view(integer)
    pieces = (bits[start : start + _PIECE_NUMBERS] for start in range(0, bits.size, _PIECE_NUMBERS))
    return sum(int(np.count_nonzero((piece & integer(exponent)) == integer(exponent))) for piece in pieces)
