"""A picture and its crops as image tokens: prepared as the model's family has it, and run through the vision graph.

Squares are prepared by the runtime itself, where their pixels lie, and several crops are encoded in one run; so are
patches, one look at a time. What other families take of a picture, they make from it. Knows nothing of what the decoder
does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

from sdrpn.families.family import VisionInputs
from sdrpn.families.registry import family_of
from sdrpn.method.grids import Box, cell_count
from sdrpn.method.spec import ModelSpec, Vision
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner
from sdrpn.runtime.decoder import ImageRows
from sdrpn.runtime.pictures.picture import Picture

__all__ = ["Looks"]

Stage = Callable[[str], AbstractContextManager[object]]


class Looks:
    """Image tokens (1,h*w,D) of every look, which stay where the decoder will read them."""

    def __init__(self, spec: ModelSpec, backend: Backend, vision: Runner) -> None:
        self._spec, self._backend, self._vision = spec, backend, vision
        self._family = family_of(spec)
        self._square = self._family.square(spec.vision)
        outputs = self._family.vision_outputs(spec)
        self._features = tuple(tensor.name for tensor in outputs if tensor.role == "deepstack")

    def first(self, picture: Picture, vision: Vision, stage: Stage) -> ImageRows:
        """The whole picture.

        Args:
            vision: the model's own, or with another budget
            stage: what times "preprocess" and "vision"
        """
        square = self._square
        if square is None:
            hw, patched = vision.grid(picture.size).hw, self._family.patched(vision)
            with stage("preprocess"):
                if patched is None:
                    feeds = self._fed(self._family.first_look(picture.as_image(), vision))
                else:
                    feeds = self._patches(hw, vision, lambda out: picture.write_patches(patched, out))
            with stage("vision"):
                return self._encoded(feeds, hw)
        with stage("preprocess"):
            pixels = self._squares(1, lambda buffer: picture.fill_base(square, buffer))
        with stage("vision"):
            return ImageRows(self._encoded_squares(pixels))

    def crops(self, picture: Picture, boxes: Sequence[Box], vision: Vision, stage: Stage) -> list[ImageRows]:
        """Parts of it, in order. `stage`: what times "crop_preprocess" and "crop_vision"."""
        square, grid = self._square, vision.grid(picture.size)
        if square is None:
            with stage("crop_preprocess"):
                looks = [self._crop_feeds(picture, box, vision) for box in boxes]
            with stage("crop_vision"):
                return [self._encoded(feeds, grid.crop_hw(box)) for feeds, box in zip(looks, boxes, strict=True)]
        with stage("crop_preprocess"):
            pixels = self._squares(len(boxes), lambda buffer: picture.fill_crops(boxes, square, buffer))
        with stage("crop_vision"):
            tokens = self._encoded_squares(pixels)
            return [ImageRows(tokens.entries(index, index + 1)) for index in range(len(boxes))]

    def _squares(self, count: int, fill: Callable[[Buffer], None]) -> Buffer:
        """The vision graph's input (N,3,R,R)."""
        assert self._square is not None
        side = self._square.image_size_px
        buffer = self._backend.allocate((count, 3, side, side), "float32", for_host=True)
        fill(buffer)
        return buffer

    def _encoded_squares(self, pixels: Buffer) -> Buffer:
        """Pixels (N,3,R,R) -> (N,G*G,D)."""
        shape = (pixels.shape[0], self._spec.vision.image_tokens, self._spec.llm.width)
        result = self._backend.allocate(shape, "float32")
        self._vision.run({"pixel_values": pixels}, {"image_embeds": result})
        return result

    def _crop_feeds(self, picture: Picture, box: Box, vision: Vision) -> dict[str, Buffer]:
        """The vision graph's inputs for a part of a picture."""
        patched = self._family.patched(vision)
        if patched is None:
            return self._fed(self._family.crop_look(picture.as_image(), box, vision))
        hw = vision.grid(picture.size).crop_hw(box)
        return self._patches(hw, vision, lambda out: picture.write_crop_patches(box, patched, out))

    def _patches(
        self, hw: tuple[int, int], vision: Vision, write: Callable[[npt.NDArray[np.float32]], None]
    ) -> dict[str, Buffer]:
        """The inputs for a look of h x w image tokens, whose patches `write` puts into the graph's own input."""
        patched = self._family.patched(vision)
        assert patched is not None
        count, numbers = cell_count(hw) * patched.merge**2, 3 * patched.patch_size_px**2
        pixels = self._backend.allocate((count, numbers), "float32", for_host=True)
        pixels.fill(write)
        return {"pixel_values": pixels, **self._fed(self._family.look_tables(hw, vision))}

    def _fed(self, inputs: VisionInputs) -> dict[str, Buffer]:
        feeds = {}
        for name, values in inputs.items():
            feeds[name] = self._backend.allocate(values.shape, values.dtype.name, for_host=True)
            feeds[name].write(np.ascontiguousarray(values))
        return feeds

    def _encoded(self, feeds: Mapping[str, Buffer], hw: tuple[int, int]) -> ImageRows:
        """The inputs of one look -> its tokens, and the features beside them."""
        shape = (1, cell_count(hw), self._spec.llm.width)
        results = {name: self._backend.allocate(shape, "float32") for name in ("image_embeds", *self._features)}
        self._vision.run(feeds, results)
        return ImageRows(results["image_embeds"], tuple(results[name] for name in self._features))
