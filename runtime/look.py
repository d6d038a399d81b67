"""What a look is: where a question points, and how surely; no words. Data only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.images.picture_output import require_picture_name
from sdrpn.method.geometry import Seen
from sdrpn.runtime.answer import Timings
from sdrpn.runtime.drawing import draw_regions, png_bytes, save_overlay
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.regions import DroppedRegion, Region

__all__ = ["Look"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Look:
    """Where one question points.

    `boxes` are the regions that an answer would look at again, in that order; `dropped` are those that fired and were
    left out, with the reason. `roi_map` is (h, w) in 0..1, one value per cell of the image grid. `timings` are those
    of the call: of several questions at once they are the same for all. The picture stays in memory as long as the
    look does, and an array is not copied: `crop` reads what it holds by then.
    """

    question: str | None  # None: it was asked by token ids
    image_wh: tuple[int, int]  # pixels of the upright picture
    boxes: tuple[Region, ...]
    roi_map: FloatArray
    dropped: tuple[DroppedRegion, ...]
    note: str | None  # why there is no box, or a region was left out, for people
    timings: Timings
    picture: Picture = field(repr=False)
    fit: Seen = field(default="pad", repr=False)  # how the map lies over the picture, see `VisionSpec`
    gate_score: float | None = None  # how likely the first look is not enough; None: no gate was asked
    kept_cells: npt.NDArray[np.bool_] | None = field(default=None, repr=False)  # (h, w), False for sinks; None: all

    @property
    def boxes_xyxy_px(self) -> tuple[tuple[int, int, int, int], ...]:
        """The boxes alone, as `Answer.boxes_xyxy_px`."""
        return tuple(region.xyxy_px for region in self.boxes)

    def crop(self, index: int) -> Image.Image:
        """The picture under `boxes[index]`, at full resolution. Raises BadInput where there is no such box."""
        try:
            box = self.boxes[index].xyxy_px
        except TypeError:
            raise BadInput(f"index is {index!r}; expected the number of a box, from 0") from None
        except IndexError:
            count = f"{len(self.boxes)} box{'' if len(self.boxes) == 1 else 'es'}"
            raise BadInput(f"there is no box {index}: this look has {count}") from None
        return self.picture.part(box)

    def overlay(self) -> Image.Image:
        """The picture under the map and the boxes, with the crops beside it and what was dropped."""
        return draw_regions(self.picture.as_image(), self.roi_map, self.boxes_xyxy_px, self.dropped, self.fit)

    def save_overlay(self, path: str | os.PathLike[str]) -> None:
        """Write `overlay` as .png, .jpg or .webp. Raises BadInput for another ending or a folder that is not there."""
        require_picture_name(path)
        save_overlay(self.overlay(), path)

    def to_dict(self, *, with_map: bool = True) -> dict[str, Any]:
        """All of it but the picture, as JSON holds it. `with_map`: also the map, as a list of rows."""
        found: dict[str, Any] = {
            "question": self.question,
            "image_wh": list(self.image_wh),
            "boxes": [region.to_dict() for region in self.boxes],
            "dropped": [region.to_dict() for region in self.dropped],
            "note": self.note,
            "gate_score": self.gate_score,
            "timings": self.timings.to_dict(),
        }
        return found | {"roi_map": self.roi_map.tolist()} if with_map else found

    def __eq__(self, other: object) -> bool:
        """Whether both found the same on pictures of one size. What it cost is not compared."""
        if not isinstance(other, Look):
            return NotImplemented
        mine, theirs = ((x.question, x.image_wh, x.boxes, x.dropped, x.note) for x in (self, other))
        return mine == theirs and np.array_equal(self.roi_map, other.roi_map)

    def __hash__(self) -> int:
        return hash((self.question, self.image_wh, self.boxes))

    def _repr_png_(self) -> bytes:
        """The overlay, in notebooks."""
        return png_bytes(self.overlay())

    def __repr__(self) -> str:
        boxes = ", ".join(f"{region.xyxy_px} {region.score_max:.2f}" for region in self.boxes)
        note = f", note={self.note!r}" if self.note else ""
        dropped = f", {len(self.dropped)} dropped" if self.dropped else ""
        return f"Look({self.question!r}, boxes=[{boxes}]{dropped}{note}, {self.timings.total_s * 1000:.0f} ms)"
