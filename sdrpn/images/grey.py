"""Convert greyscale pictures of more than 8 bits to 8 bits. Pillow's own conversion clips."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sdrpn.errors import BadImage

__all__ = ["eight_bit_grey"]

# Cameras and scanners store 8, 10 or 12 bits in the low bits of 16. 14 bits are left out: a 16-bit picture that is
# merely dark may have its brightest pixel below a quarter of full scale.
_WHOLE_SCALES = (255.0, 1023.0, 4095.0, 65535.0)
_FLOAT_SCALES = (1.0, 255.0)


def eight_bit_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float grey to 8 bits.

    Full scale is the smallest range that holds every pixel: 8, 10, 12 or 16 bits for integers, 1 or 255 for floats.
    Pictures with values outside all of these ranges are scaled from their minimum to their maximum.
    Raises: BadImage for pixels that are NaN or infinite.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise BadImage("has pixels that are NaN or infinite; expected finite grey values")
    scales = _FLOAT_SCALES if image.mode == "F" else _WHOLE_SCALES
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    low, span = (0.0, full) if full else (low, high - low)
    # In float64: the difference of two large float32 values overflows float32.
    grey = np.round((values.astype(np.float64) - low) * (255.0 / span))
    return Image.fromarray(grey.astype(np.uint8))
