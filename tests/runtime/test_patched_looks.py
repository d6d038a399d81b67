"""What the vision graph of a model that sees patches is fed: the same by the native path as the family makes it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.backends.fake import FakeBackend
from sdrpn.runtime.looks import Looks
from sdrpn.runtime.pictures.picture import open_picture
from tests.families.qwen.models import KINDS

Arrays = Mapping[str, npt.NDArray[Any]]


class Recorded:
    """A vision graph that keeps what it was fed and gives numbers that count the tokens."""

    def __init__(self) -> None:
        self.feeds: list[Arrays] = []

    def run(self, feeds: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        self.feeds.append({name: buffer.read().copy() for name, buffer in feeds.items()})
        for buffer in results.values():
            buffer.write(np.arange(np.prod(buffer.shape), dtype=np.float32).reshape(buffer.shape))


@pytest.mark.parametrize("resize", ["once", "official"])
@pytest.mark.parametrize("spec", [KINDS["q-zoom"], KINDS["q-zoom-3"]], ids=["2.5", "3"])
def test_patches_and_tables_are_the_family_s(spec: ModelSpec, resize: Any) -> None:
    family, graph = family_of(spec), Recorded()
    looks = Looks(spec, FakeBackend({}), graph)  # type: ignore[arg-type]
    vision = family.with_resize(spec.vision, resize)
    pixels = np.random.default_rng(0).integers(0, 256, (211, 333, 3), np.uint8)
    picture, boxes = open_picture(pixels), [(10, 20, 133, 60), (0, 0, 28, 28)]

    rows = looks.first(picture, vision, lambda name: nullcontext())
    crops = looks.crops(picture, boxes, vision, lambda name: nullcontext())

    image = picture.as_image()
    expected = [family.first_look(image, vision), *(family.crop_look(image, box, vision) for box in boxes)]
    assert len(graph.feeds) == len(expected)
    for found, made in zip(graph.feeds, expected, strict=True):
        assert found.keys() == made.keys()
        for name, values in made.items():
            np.testing.assert_array_equal(found[name], values, name)
            assert found[name].dtype == values.dtype, name
    height, width = vision.grid(picture.size).hw
    assert rows.embeds.shape == (1, height * width, spec.llm.width)
    assert len(crops) == 2
    assert len(rows.deepstack) == family.deepstack(spec.vision)
