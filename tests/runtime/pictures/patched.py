"""A vision spec of patches whose sizes a test chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]


def noise(width: int, height: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Patched:
    """A `PatchedVision` that resizes everything to the same sizes."""

    sizes: tuple[Size, ...]
    patch_size_px: int
    merge: int
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def picture_sizes(self, image_wh: Size) -> Sequence[Size]:
        return self.sizes

    def crop_sizes(self, crop_wh: Size) -> Sequence[Size]:
        return self.sizes
