"""A model of any family, in the parts that the runtime has: vision, embedding table, trunk, gate, RPN, tail."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdrpn.checkpoint import Checkpoint
from sdrpn.method.spec import ModelSpec, Vision
from sdrpn.model.gate import Gate
from sdrpn.model.rpn import Rpn
from sdrpn.model.tail import Tail
from sdrpn.model.trunk import Trunk
from sdrpn.model.vision import VisionModule, vision_module

__all__ = [
    "BaseModel",
    "SdRpnModel",
    "base_at",
    "base_from_checkpoint",
    "model_from_checkpoint",
    "tensor_from_array",
    "with_vision",
]

ModelT = TypeVar("ModelT", bound="BaseModel")


class BaseModel(nn.Module):
    """A model up to the tap: the frozen base of an RPN's training."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision: VisionModule = vision_module(spec)
        self.embed = nn.Embedding(spec.llm.vocabulary, spec.llm.width)
        self.trunk = Trunk(spec)

    def canonical_name(self, key: str) -> str:
        """A checkpoint's name for an entry of this model's state dict."""
        part, _, rest = key.partition(".")
        if part == "vision":
            return rest if rest.startswith("projector.") else f"vision.{rest.removeprefix('tower.')}"
        if part in ("rpn", "gate"):
            return key
        if part == "tail" and rest.startswith("layers."):
            _, index, suffix = rest.split(".", 2)
            return f"llm.layers.{self.spec.tap_layer + int(index)}.{suffix}"
        return f"llm.{key}" if part == "embed" else f"llm.{rest}"


class SdRpnModel(BaseModel):
    """A model cut at the tap, with the RPN and the gate beside its tail. Both are None for a model without them.

    It has no forward method: `reference.py` combines the parts.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.rpn = None if spec.rpn is None else Rpn(spec)
        self.gate = Gate(spec) if spec.rpn is not None and spec.rpn.has_gate else None
        self.tail = Tail(spec)
        self.rpn_trained = False  # whether the RPN's weights were trained


def model_from_checkpoint(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> SdRpnModel:
    """The model in evaluation mode, no parameter requiring a gradient; only one copy of the weights is held."""
    with torch.device("meta"):  # no memory, no initialisation
        model = SdRpnModel(checkpoint.spec)
    model.rpn_trained = checkpoint.rpn_trained
    _load_frozen(model, checkpoint, dtype)
    return model


def base_from_checkpoint(checkpoint: Checkpoint, tap_layer: int, dtype: torch.dtype = torch.float32) -> BaseModel:
    """As `model_from_checkpoint`, but nothing past layer `tap_layer` - 1 is read or held."""
    with torch.device("meta"):
        base = BaseModel(dataclasses.replace(checkpoint.spec, tap_layer=tap_layer, rpn=None))
    _load_frozen(base, checkpoint, dtype)
    return base


def base_at(model: SdRpnModel, tap_layer: int) -> BaseModel:
    """The model up to another tap. It shares the modules of `model`: nothing is read or copied."""
    with torch.device("meta"):
        base = BaseModel(dataclasses.replace(model.spec, tap_layer=tap_layer, rpn=None))
    base.vision, base.embed = model.vision, model.embed
    base.trunk.layers = nn.ModuleList([*model.trunk.layers, *model.tail.layers][:tap_layer])
    return base.eval()


def with_vision(model: ModelT, vision: Vision) -> ModelT:
    """The same model with another budget for its pictures. It shares the modules of `model`."""
    other = copy.copy(model)
    other.spec = dataclasses.replace(model.spec, vision=vision)
    return other


def _load_frozen(model: BaseModel, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
    keys = list(model.state_dict())
    state = {key: tensor_from_array(checkpoint.read(model.canonical_name(key)), dtype) for key in keys}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)


def tensor_from_array(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    """A copy of a checkpoint's array as a tensor, including bfloat16."""
    owned = np.array(array)  # the checkpoint's array maps a file and cannot be written to
    if owned.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(owned.view(np.uint16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(owned).to(dtype)


def __getattr__(name: str) -> object:
    """Names that this module had in the previous release, kept for one version."""
    from sdrpn._moved import name_of

    return name_of(__name__, name)
