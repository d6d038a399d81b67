"""A picture whose input for the first pass is there already, as it is where two pictures were compared by it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.images.patches import PatchedVision
from sdrpn.images.pixels import SquareVision
from sdrpn.method.grids import Box
from sdrpn.runtime.pictures.picture import Patches, Picture, Planes

__all__ = ["SeenPicture"]


class SeenPicture(Picture):
    """The picture, without a second resize for its first pass, and named by what the model sees of it.

    Pictures that the model sees alike have one digest: what was computed of the first pass holds for both.
    """

    def __init__(self, picture: Picture, vision: SquareVision, base: npt.NDArray[np.float32]) -> None:
        """Args: base: (1, 3, R, R), what `picture.write_base` writes for `vision`; not to be changed any more"""
        self._picture, self._vision, self._base = picture, vision, base
        self.size = picture.size

    def digest(self) -> str:
        """A digest of what the model sees, and of the size."""
        width, height = self.size
        digest = hashlib.blake2b(f"seen {width}x{height} {self._vision!r}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self._base).data)
        return digest.hexdigest()

    def as_image(self) -> Image.Image:
        """See `Picture`."""
        return self._picture.as_image()

    def write_base(self, vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        if vision == self._vision:
            np.copyto(out, self._base, casting="same_kind")
        else:
            self._picture.write_base(vision, out)

    def write_crops(self, boxes: Sequence[Box], vision: SquareVision, out: Planes) -> None:
        """See `Picture`."""
        self._picture.write_crops(boxes, vision, out)

    def write_patches(self, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        self._picture.write_patches(vision, out)

    def write_crop_patches(self, box: Box, vision: PatchedVision, out: Patches) -> None:
        """See `Picture`."""
        self._picture.write_crop_patches(box, vision, out)

    def _part(self, box: Box) -> Image.Image:
        return self._picture.part(box)
