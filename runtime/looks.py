"""A picture and its crops as image tokens: prepared as the model's family has it, and run through the vision graph.

Squares are prepared by the runtime itself, where their pixels lie, and several crops are encoded in one run. What other
families take of a picture, they make from it one look at a time. Knows no decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from sdrpn.families.family import VisionInputs
from sdrpn.families.registry import family_of
from sdrpn.method.grids import Box
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner
from sdrpn.runtime.pictures.picture import Picture

__all__ = ["Looks"]

Stage = Callable[[str], AbstractContextManager[object]]


class Looks:
    """Image tokens (1,h*w,D) of every look, which stay where the decoder will read them."""

    def __init__(self, spec: ModelSpec, backend: Backend, vision: Runner) -> None:
        self._spec, self._backend, self._vision = spec, backend, vision
        self._family = family_of(spec)
        self._square = self._family.square(spec.vision)

    def first(self, picture: Picture, stage: Stage) -> Buffer:
        """The whole picture. `stage`: what times "preprocess" and "vision"."""
        square, vision = self._square, self._spec.vision
        if square is None:
            with stage("preprocess"):
                inputs = self._family.first_look(picture.as_image(), vision)
            with stage("vision"):
                return self._encoded(inputs)
        with stage("preprocess"):
            pixels = self._squares(1, lambda buffer: picture.fill_base(square, buffer))
        with stage("vision"):
            return self._encoded_squares(pixels)

    def crops(self, picture: Picture, boxes: Sequence[Box], stage: Stage) -> list[Buffer]:
        """Parts of it, in order. `stage`: what times "crop_preprocess" and "crop_vision"."""
        square, vision = self._square, self._spec.vision
        if square is None:
            with stage("crop_preprocess"):
                image = picture.as_image()
                looks = [self._family.crop_look(image, box, vision) for box in boxes]
            with stage("crop_vision"):
                return [self._encoded(inputs) for inputs in looks]
        with stage("crop_preprocess"):
            pixels = self._squares(len(boxes), lambda buffer: picture.fill_crops(boxes, square, buffer))
        with stage("crop_vision"):
            tokens = self._encoded_squares(pixels)
            return [tokens.entries(index, index + 1) for index in range(len(boxes))]

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

    def _encoded(self, inputs: VisionInputs) -> Buffer:
        """The inputs of one look, whose second axis counts its cells in the first of them -> (1,h*w,D)."""
        feeds = {}
        for name, values in inputs.items():
            feeds[name] = self._backend.allocate(values.shape, values.dtype.name, for_host=True)
            feeds[name].write(np.ascontiguousarray(values))
        cells = next(iter(inputs.values())).shape[1]
        result = self._backend.allocate((1, cells, self._spec.llm.width), "float32")
        self._vision.run(feeds, {"image_embeds": result})
        return result
