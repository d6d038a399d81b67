"""How much memory a picture takes while a question about it is prefilled. Reads headers; decodes no pixel."""

from __future__ import annotations

import re
from pathlib import Path

from sdrpn.errors import BadImage, BadInput
from sdrpn.images.picture_file import identified

__all__ = ["BYTES_PER_PIXEL", "JPEG_BYTES_PER_PIXEL", "decoded_bytes", "memory_of_picture"]

# Pillow holds 4 bytes per pixel, and the array that is read from it 3. A JPEG file is decoded into such an array.
BYTES_PER_PIXEL, JPEG_BYTES_PER_PIXEL = 7, 3
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")
_NO_LIMIT = 1 << 62


def decoded_bytes(width: int, height: int, file_bytes: int = 0, file_format: str | None = None) -> int:
    """The file and its pixels. file_format: as Pillow names it; None: of any format, so the one that takes most."""
    per_pixel = JPEG_BYTES_PER_PIXEL if file_format == "JPEG" else BYTES_PER_PIXEL
    return file_bytes + per_pixel * width * height


def memory_of_picture(picture: str | Path) -> int:
    """The same of a file, or of a size such as 4000x3000. Raises BadInput for anything else."""
    size = _SIZE.fullmatch(str(picture))
    if size is not None:
        return decoded_bytes(int(size[1]), int(size[2]))
    path = Path(picture)
    if not path.is_file():
        raise BadInput(
            f"picture is {str(picture)!r}; expected a file, or a size in pixels such as 4000x3000", options=("picture",)
        )
    try:
        with path.open("rb") as stream, identified(stream, str(path), _NO_LIMIT) as image:
            return decoded_bytes(*image.size, path.stat().st_size, image.format)
    except BadImage as error:
        raise BadInput(f"picture cannot be read: {error}", options=("picture",)) from error
