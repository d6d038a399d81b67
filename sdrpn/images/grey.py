"""Grey pictures of more than 8 bits as 8 bits. Pillow's own conversion clips."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sdrpn.errors import BadImage

__all__ = ["eight_bit_grey"]

# Cameras and scanners keep 8, 10 or 12 bits in the lower ones of 16. 14 bits are not among them: the brightest pixel of
# a picture of 16 bits that is merely dark may lie below a quarter.
_WHOLE_SCALES = (255.0, 1023.0, 4095.0, 65535.0)
_FLOAT_SCALES = (1.0, 255.0)


def eight_bit_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float grey to 8 bits.

    Full scale is the lowest that holds every pixel: of 8, 10, 12 or 16 bits for whole numbers, 1 or 255 for floats.
    Values beyond all of them, or below 0, stretch from the lowest to the highest.
    Raises: BadImage for pixels that are NaN or infinite.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        raise BadImage("has pixels that are NaN or infinite; expected finite grey values")
    scales = _FLOAT_SCALES if image.mode == "F" else _WHOLE_SCALES
    full = next((scale for scale in scales if low >= 0 and high <= scale), None)
    low, span = (0.0, full) if full else (low, high - low)
    # In 64 bits: the span of two large floats overflows in 32.
    grey = np.round((values.astype(np.float64) - low) * (255.0 / span))
    return Image.fromarray(grey.astype(np.uint8))
