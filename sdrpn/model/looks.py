"""Pictures and crops as image tokens: the family prepares a look, its vision module encodes it. PyTorch.

R image tokens of a look, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdrpn.families.family import VisionInputs
from sdrpn.families.registry import family_of
from sdrpn.method.roi import Crop, resize_features
from sdrpn.model.base import BaseModel
from sdrpn.model.vision import LookTokens

__all__ = [
    "crop_look",
    "crop_looks",
    "crop_tokens",
    "encoded_look",
    "look_tokens",
    "picture_look",
    "picture_looks",
    "picture_tokens",
]


@torch.inference_mode()
def picture_look(model: BaseModel, picture: Image.Image) -> LookTokens:
    """The first look at an upright RGB picture: (1,h*w,D), on the model's device."""
    return encoded_look(model, family_of(model.spec).first_look(picture, model.spec.vision))


@torch.inference_mode()
def picture_looks(model: BaseModel, pictures: Sequence[Image.Image]) -> list[LookTokens]:
    """The first looks at several pictures, encoded together where the tower takes pictures side by side."""
    family = family_of(model.spec)
    return _encoded_looks(model, [family.first_look(picture, model.spec.vision) for picture in pictures])


@torch.inference_mode()
def crop_looks(model: BaseModel, crops: Sequence[tuple[Image.Image, Crop]]) -> list[LookTokens]:
    """The tokens (1,n,D) that crops insert, encoded together where the tower takes pictures side by side."""
    family, found = family_of(model.spec), list[LookTokens]()
    looks = [family.crop_look(picture, crop.box_xyxy_px, model.spec.vision) for picture, crop in crops]
    for (picture, crop), look in zip(crops, _encoded_looks(model, looks), strict=True):
        if crop.keep_cells is not None:
            found.append(look.at(torch.from_numpy(crop.keep_cells.ravel()).to(look.embeds.device)))
        else:
            found.append(_at_grid(model, look, picture, crop))
    return found


def _encoded_looks(model: BaseModel, looks: Sequence[VisionInputs]) -> list[LookTokens]:
    declared = family_of(model.spec).vision_inputs(model.spec)
    shapes = {tuple(look[tensor.name].shape for tensor in declared) for look in looks}
    if len(looks) < 2 or len(shapes) > 1 or any(tensor.dims[0] != "images" for tensor in declared):
        return [encoded_look(model, look) for look in looks]
    stacked = {tensor.name: np.concatenate([look[tensor.name] for look in looks]) for tensor in declared}
    found = encoded_look(model, stacked)
    return [
        LookTokens(found.embeds[place][None], tuple(feature[place][None] for feature in found.deepstack))
        for place in range(len(looks))
    ]


@torch.inference_mode()
def crop_look(model: BaseModel, picture: Image.Image, crop: Crop) -> LookTokens:
    """The tokens (1,n,D) that a crop inserts, on the model's device."""
    look = family_of(model.spec).crop_look(picture, crop.box_xyxy_px, model.spec.vision)
    if crop.keep_cells is not None:
        keep = torch.from_numpy(crop.keep_cells.ravel()).to(model.embed.weight.device)
        return model.vision.kept(*_inputs(model, look), keep=keep)
    return _at_grid(model, encoded_look(model, look), picture, crop)


def _at_grid(model: BaseModel, found: LookTokens, picture: Image.Image, crop: Crop) -> LookTokens:
    """The tokens of a crop, resized to the grid that it is inserted with."""
    if crop.grid_hw is None:
        return found
    hw = model.spec.vision.grid(picture.size).crop_hw(crop.box_xyxy_px)
    embeds, *deepstack = (_resized(feature, hw, crop.grid_hw) for feature in (found.embeds, *found.deepstack))
    return LookTokens(embeds, tuple(deepstack))


@torch.inference_mode()
def encoded_look(model: BaseModel, look: VisionInputs) -> LookTokens:
    """One look (1,R,D), on the model's device."""
    return model.vision.features(*_inputs(model, look))


def picture_tokens(model: BaseModel, picture: Image.Image) -> Tensor:
    """The image tokens (h*w,D) of `picture_look`."""
    return picture_look(model, picture).embeds[0]


def crop_tokens(model: BaseModel, picture: Image.Image, crop: Crop) -> Tensor:
    """The image tokens (n,D) of `crop_look`."""
    return crop_look(model, picture, crop).embeds[0]


def look_tokens(model: BaseModel, look: VisionInputs) -> Tensor:
    """The image tokens (R,D) of `encoded_look`."""
    return encoded_look(model, look).embeds[0]


def _resized(features: Tensor, hw: tuple[int, int], grid_hw: tuple[int, int]) -> Tensor:
    """(1,h*w,D) -> (1,rows*columns,D)."""
    array: NDArray[Any] = features[0].float().cpu().numpy().reshape(*hw, -1)
    resized: NDArray[np.float32] = resize_features(array, grid_hw)
    return torch.from_numpy(resized).to(features).flatten(0, 1)[None]


def _inputs(model: BaseModel, look: VisionInputs) -> list[Tensor]:
    """In the order of the vision graph's inputs; numbers with a fraction are in the type that the model computes in."""
    weight, tensors = model.embed.weight, list[Tensor]()
    for declared in family_of(model.spec).vision_inputs(model.spec):
        tensor = torch.from_numpy(look[declared.name]).to(weight.device)
        tensors.append(tensor.to(weight.dtype) if tensor.is_floating_point() else tensor)
    return tensors
