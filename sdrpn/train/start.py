"""The initial weights of an RPN: copies of the LLM's own layers after the tap. PyTorch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sdrpn.checkpoint import Checkpoint
from sdrpn.method.spec import RpnSpec
from sdrpn.model.rpn import Rpn

__all__ = ["rpn_from_layers"]


def rpn_from_layers(checkpoint: Checkpoint, tap_layer: int, rpn: RpnSpec) -> Rpn:
    """An RPN of copies of layers K..K+T-1, always in float32, with the final norm as its norm.

    The unused parts of the last RPN layer (values, output projection, MLP) do not exist, so that every parameter gets
    a gradient; all of them require one. An RPN in the checkpoint is ignored.
    Raises BadInput where the LLM has no such layers.
    """
    spec = dataclasses.replace(checkpoint.spec, tap_layer=tap_layer, rpn=rpn)
    with torch.device("meta"):  # no memory, no initialisation
        module = Rpn(spec)
    state = {key: torch.from_numpy(_read(checkpoint, _source_name(key, tap_layer))) for key in module.state_dict()}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(True)


def _source_name(key: str, tap_layer: int) -> str:
    """The canonical name of the tensor that initialises an entry of the RPN's state."""
    if not key.startswith("layers."):
        return f"llm.{key}"
    _, index, suffix = key.split(".", 2)
    return f"llm.layers.{tap_layer + int(index)}.{suffix}"


def _read(checkpoint: Checkpoint, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    # A copy: the checkpoint's array maps a file, and training writes to the tensor.
    return checkpoint.read(name).astype(np.float32, copy=True)
