"""Where a model looked, as a picture: for notebooks, and for files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.images.picture_output import require_picture_name, save_picture
from sdrpn.method.geometry import Seen
from sdrpn.method.grids import Box
from sdrpn.method.overlay import draw_overlay
from sdrpn.runtime.regions import DroppedRegion

__all__ = ["draw_regions", "png_bytes", "save_overlay"]


def draw_regions(
    image: Image.Image,
    roi_map: npt.NDArray[np.float32] | None,
    boxes: Sequence[Box],
    dropped: Sequence[DroppedRegion],
    fit: Seen,
) -> Image.Image:
    """The image under heat map and boxes, crops beside it, and what was left out with the reason."""
    left_out = [(region.xyxy_px, region.reason) for region in dropped if region.xyxy_px is not None]
    return draw_overlay(image, roi_map, boxes, fit=fit, dropped=left_out)


def png_bytes(picture: Image.Image) -> bytes:
    """As a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def save_overlay(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write it whole or not at all. Raises BadInput for another ending, or a folder that does not exist."""
    require_picture_name(path)
    save_picture(picture, Path(path))
