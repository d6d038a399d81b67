"""Random pictures that resemble photographs: soft light, hard edges, noise. Knows no model."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["random_photograph"]


def random_photograph(seed: int, image_wh: tuple[int, int]) -> Image.Image:
    """An RGB picture of `image_wh` pixels; the same seed and size give the same picture."""
    rng = np.random.default_rng(seed)
    width, height = image_wh
    # A smooth blend of a few colours is the light; rectangles are the objects.
    light = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    picture = np.array(light.resize(image_wh, Image.Resampling.BICUBIC), np.float32)
    for _ in range(6):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        right, bottom = left + int(rng.integers(1, width // 2 + 2)), top + int(rng.integers(1, height // 2 + 2))
        picture[top:bottom, left:right] = rng.integers(0, 256, 3)
    picture += rng.normal(0, 6, picture.shape)  # sensor noise
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
