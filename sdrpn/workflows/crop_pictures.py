"""A picture whose crops are cut from another one, for experiments with a session. Knows no task and no method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.images.patches import PatchedVision
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.runtime.pictures.picture import Picture, open_picture

__all__ = ["PictureWithOtherCrops"]


class PictureWithOtherCrops(Picture):
    """The first look sees `shown`, the second cuts its crops from `pixels`; both have the same size."""

    def __init__(self, shown: Image.Image, pixels: Image.Image) -> None:
        self._shown, self._pixels = open_picture(shown), open_picture(pixels)
        self.size = self._shown.size

    def digest(self) -> str:
        """That of the shown picture: questions do not share crops."""
        return self._shown.digest()

    def as_image(self) -> Image.Image:
        """The shown picture."""
        return self._shown.as_image()

    def write_base(self, vision: SquareVision, out: npt.NDArray[Any]) -> None:
        """See `Picture`."""
        self._shown.write_base(vision, out)

    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: npt.NDArray[Any]) -> None:
        """See `Picture`."""
        self._pixels.write_crops(boxes, vision, out)

    def write_patches(self, vision: PatchedVision, out: npt.NDArray[np.float32]) -> None:
        """See `Picture`."""
        self._shown.write_patches(vision, out)

    def write_crop_patches(self, box: Box, vision: PatchedVision, out: npt.NDArray[np.float32]) -> None:
        """See `Picture`."""
        self._pixels.write_crop_patches(box, vision, out)

    def _part(self, box: Box) -> Image.Image:
        return self._pixels.part(box)
