"""Pictures and crops as image tokens: the family prepares a look, its vision module encodes it. PyTorch.

R image tokens of a look, D width of the LLM.
"""

from __future__ import annotations

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

__all__ = ["crop_tokens", "look_tokens", "picture_tokens"]


@torch.inference_mode()
def picture_tokens(model: BaseModel, picture: Image.Image) -> Tensor:
    """The first look at an upright RGB picture: (h*w,D), on the model's device."""
    return look_tokens(model, family_of(model.spec).first_look(picture, model.spec.vision))


@torch.inference_mode()
def crop_tokens(model: BaseModel, picture: Image.Image, crop: Crop) -> Tensor:
    """The tokens (n,D) that a crop inserts, on the model's device."""
    look = family_of(model.spec).crop_look(picture, crop.box_xyxy_px, model.spec.vision)
    if crop.keep_cells is not None:
        keep = torch.from_numpy(crop.keep_cells.ravel()).to(model.embed.weight.device)
        kept: Tensor = model.vision.kept(*_inputs(model, look), keep=keep)
        return kept
    embeds = look_tokens(model, look)
    if crop.grid_hw is None:
        return embeds
    hw = model.spec.vision.grid(picture.size).crop_hw(crop.box_xyxy_px)
    features: NDArray[Any] = embeds.float().cpu().numpy().reshape(*hw, -1)
    resized: NDArray[np.float32] = resize_features(features, crop.grid_hw)
    return torch.from_numpy(resized).to(embeds).flatten(0, 1)


@torch.inference_mode()
def look_tokens(model: BaseModel, look: VisionInputs) -> Tensor:
    """One look (R,D), on the model's device."""
    embeds: Tensor = model.vision(*_inputs(model, look))[0]
    return embeds


def _inputs(model: BaseModel, look: VisionInputs) -> list[Tensor]:
    """In the order of the vision graph's inputs; numbers with a fraction are in the type that the model computes in."""
    weight, tensors = model.embed.weight, list[Tensor]()
    for declared in family_of(model.spec).vision_inputs(model.spec):
        tensor = torch.from_numpy(look[declared.name]).to(weight.device)
        tensors.append(tensor.to(weight.dtype) if tensor.is_floating_point() else tensor)
    return tensors
