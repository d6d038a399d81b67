"""What a checkpoint's processor does to pictures: honoured, or refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.errors import BadCheckpoint
from sdrpn.families.llava.processor_config import read_processor
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.images.pixels import base_pixels
from tests.tiny_models import tiny_spec

SIDE = 56
VISION = VisionSpec(image_size_px=SIDE, patch_size_px=14, width=32, layers=3, heads=2, mlp_width=64)
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "image_mean": list(VISION.image_mean),
    "image_std": list(VISION.image_std),
}


def processor_in(folder: Path, **changes: Any) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changes}))
    return folder


def transformers_pixels(folder: Path, image: Image.Image) -> npt.NDArray[Any]:
    transformers = pytest.importorskip("transformers")
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    processor = getattr(transformers, name).from_pretrained(folder)
    pixels: npt.NDArray[Any] = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    return pixels


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": 1 / 256, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]},
    ],
    ids=str,
)
def test_pixel_values_equal_those_of_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    read = read_processor(processor_in(tmp_path, **changes))
    vision = dataclasses.replace(VISION, image_mean=read.mean, image_std=read.std, border=read.border, fit="crop")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8))
    expected = transformers_pixels(tmp_path, image)
    np.testing.assert_allclose(base_pixels(image, vision), expected, rtol=1e-5, atol=1e-5)


def test_the_border_stays_the_mean_whatever_is_done_with_values(tmp_path: Path) -> None:
    """LLaVA pads with the mean of the processor's config, before anything is normalised."""
    for changes in ({"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        read = read_processor(processor_in(tmp_path, **changes))
        vision = dataclasses.replace(VISION, image_mean=read.mean, image_std=read.std, border=read.border)
        assert vision.pad_colour == VISION.pad_colour


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_normalize": "no"}, "do_normalize is 'no'; expected true or false"),
        ({"do_rescale": 1}, "do_rescale is 1; expected true or false"),
        ({"rescale_factor": 0}, "rescale_factor is 0.0; expected a number above 0"),
        ({"rescale_factor": "x"}, "rescale_factor is 'x'; expected a number"),
        ({"image_std": [0.2, 0, 0.2]}, "expected three numbers above 0"),
        ({"image_mean": [float("nan")] * 3}, "expected three numbers of a normalisation"),
        ({"resample": 2}, "resample is 2, which is not supported; expected 3"),
    ],
)
def test_entries_that_cannot_be_honoured(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        read_processor(processor_in(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_size": 64}, "crop_size is 64; the vision tower sees 56 px"),
        ({"size": {"shortest_edge": 64}}, "size is 64; the vision tower sees 56 px"),
        ({"size": {"height": 56, "width": 64}}, "expected one side in pixels"),
        ({"do_center_crop": False}, "do_center_crop is false, which is not supported; expected true"),
        ({"do_resize": False}, "do_resize is false, which is not supported; expected true"),
        ({"size": {"height": 56, "width": 56}}, "distorts pictures; expected a shortest_edge"),
    ],
)
def test_ways_to_a_square_that_cannot_be_honoured(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        read_processor(processor_in(tmp_path, **changes)).require_fit("crop", SIDE)


def test_what_padding_makes_irrelevant(tmp_path: Path) -> None:
    processor_in(tmp_path, do_center_crop=False, do_resize=True, size={"height": 56, "width": 56})
    read_processor(tmp_path).require_fit("pad", SIDE)


def test_a_checkpoint_says_how_pictures_become_squares(tmp_path: Path) -> None:
    spec = tiny_spec(rpn=None, image_token_id=290)
    write_random_checkpoint(tmp_path / "hf", spec, layout="hf")
    with open_checkpoint(tmp_path / "hf") as padded, open_checkpoint(tmp_path / "hf", fit="crop") as cut:
        assert clip_of(padded.spec).fit == "pad"
        assert "transformers' processor cuts the ends of the longer side off instead (fit: crop)" in padded.pictures
        assert clip_of(cut.spec) == dataclasses.replace(clip_of(padded.spec), fit="crop")
        assert "the ends of the longer side are cut off" in cut.pictures
        assert padded.digest() == cut.digest()
