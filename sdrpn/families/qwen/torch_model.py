"""The whole model in the parts that a runtime has: vision, embedding table, trunk, RPN, gate, tail. PyTorch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from sdrpn.checkpoint import Checkpoint
from sdrpn.families.qwen.torch_vision import tower
from sdrpn.method.spec import ModelSpec
from sdrpn.model.gate import Gate
from sdrpn.model.rpn import Rpn
from sdrpn.model.tail import Tail
from sdrpn.model.trunk import Trunk

__all__ = ["QwenModel", "model_from_weights"]


class QwenModel(nn.Module):
    """Either family; without an RPN or a gate where the spec has none. How the parts are used: `torch_reference.py`."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.vision = tower(spec)
        self.embed = nn.Embedding(spec.llm.vocabulary, spec.llm.width)
        self.trunk = Trunk(spec)
        self.rpn = None if spec.rpn is None else Rpn(spec)
        self.gate = Gate(spec) if spec.rpn is not None and spec.rpn.has_gate else None
        self.tail = Tail(spec)

    def canonical_name(self, key: str) -> str:
        """A checkpoint's name for an entry of the state dict."""
        part, _, rest = key.partition(".")
        if part in ("vision", "rpn", "gate"):
            return key
        if part == "tail" and rest.startswith("layers."):
            _, index, suffix = rest.split(".", 2)
            return f"llm.layers.{self.spec.tap_layer + int(index)}.{suffix}"
        return f"llm.{key}" if part == "embed" else f"llm.{rest}"


def model_from_weights(weights: Checkpoint, dtype: torch.dtype = torch.float32) -> QwenModel:
    """The model in evaluation mode, no parameter requiring a gradient."""
    with torch.device("meta"):  # no memory, no initialisation
        model = QwenModel(weights.spec)
    state = {key: _tensor(weights, model.canonical_name(key), dtype) for key in model.state_dict()}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
    return model


def _tensor(weights: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    owned = np.array(weights.read(name))  # the checkpoint's array maps a file and cannot be written to
    if owned.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(owned.view(np.uint16)).view(torch.bfloat16).to(dtype)
    return torch.from_numpy(owned).to(dtype)
