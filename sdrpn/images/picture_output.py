"""Write pictures under the names that a user chose: the format by the ending, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadInput

if TYPE_CHECKING:  # who only asks which endings there are needs no Pillow
    from PIL.Image import Image

__all__ = ["PICTURES", "require_picture_name", "save_picture"]

# What a picture is written as, by the end of its name.
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_OPTIONS: dict[str, dict[str, Any]] = {
    # Thin coloured lines on a photo: colours at full resolution, or the lines are smeared.
    "JPEG": {"quality": 92, "subsampling": 0},
    "WEBP": {"quality": 92},
}


def require_picture_name(name: object) -> None:
    """Raise BadInput for what is no path, a name that ends in no known format, or one in a folder that is not there."""
    if not isinstance(name, (str, os.PathLike)):
        raise BadInput(f"the picture to write is {name!r}; expected a path")
    path = Path(name)
    if path.suffix.lower() not in PICTURES:
        found = f"ends in {path.suffix}" if path.suffix else "has no ending"
        *others, last = PICTURES
        raise BadInput(f"{path} {found}; expected a name that ends in {', '.join(others)} or {last}")
    if not path.parent.is_dir():
        raise BadInput(f"{path} is in a folder that does not exist; make it first: mkdir -p {path.parent}")


def save_picture(picture: Image, path: Path) -> None:
    """Write it in the format that the name asks for, whole or not at all."""
    from sdrpn.host.atomic import replacing_file

    form = PICTURES[path.suffix.lower()]
    with replacing_file(path) as temporary:
        picture.save(temporary, format=form, **_OPTIONS.get(form, {}))
