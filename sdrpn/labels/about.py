"""The description of a label folder in labels.json. Knows no rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from sdrpn.errors import BadInput
from sdrpn.host.json_files import read_json_object
from sdrpn.labels.labelling import LABELS_NAME
from sdrpn.method.geometry import Seen

__all__ = ["read_about_labels"]


def read_about_labels(folder: Path) -> dict[str, Any]:
    """Read labels.json and check the entries that other code relies on. Raises BadInput."""
    path = folder / LABELS_NAME
    if not path.is_file():
        raise BadInput(f"{folder} has no {LABELS_NAME}; expected a folder that `sdrpn label` finished")
    about = read_json_object(path, "label again")
    grid_side = about.get("grid_side", 1)  # only older releases name it: rows have grids of their own
    if not isinstance(grid_side, int) or grid_side < 1:
        raise BadInput(f"{path} has the grid_side {grid_side!r}; expected a whole number of at least 1: label again")
    if not isinstance(about.get("images", ""), str):
        raise BadInput(f"{path} has the images {about['images']!r}; expected the name of a folder: label again")
    if about.get("fit", "pad") not in get_args(Seen):
        raise BadInput(f"{path} has the fit {about['fit']!r}; expected {' or '.join(get_args(Seen))}: label again")
    tokens = about.get("image_tokens")
    if tokens is not None and not (
        isinstance(tokens, list) and len(tokens) == 2 and all(type(count) is int for count in tokens)
    ):
        raise BadInput(f"{path} has the image_tokens {tokens!r}; expected the least and the most: label again")
    return about
