"""The rows and columns of a picture's patches, in the order in which the merger joins them. NumPy only.

N patches, in the order of `sdrpn.images.patches`, which makes their numbers. A still picture is the same in every frame
of a patch, so that one frame says all; the official arrays repeat it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["patch_places", "patches_hw"]

Int64 = npt.NDArray[np.int64]


def patches_hw(hw: tuple[int, int], merge: int) -> tuple[int, int]:
    """Rows and columns of patches of a grid of image tokens."""
    return hw[0] * merge, hw[1] * merge


def patch_places(hw: tuple[int, int], merge: int) -> tuple[Int64, Int64]:
    """Row and column (N,) each of every patch, in their order; `hw`: the grid of image tokens."""
    rows, columns = np.indices(patches_hw(hw, merge), np.int64)
    return _by_token(rows, merge), _by_token(columns, merge)


def _by_token(values: Int64, merge: int) -> Int64:
    """(gh,gw) row-major to (N,), image token by image token."""
    rows, columns = values.shape
    blocks = values.reshape(rows // merge, merge, columns // merge, merge)
    return blocks.transpose(0, 2, 1, 3).reshape(-1)
