"""A gate before its first step: copies of the LLM's layers after the tap, or random ones. PyTorch."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import BadInput
from sdrpn.gate.options import GateOptions
from sdrpn.method.spec import ModelSpec
from sdrpn.model.gate import Gate

__all__ = ["gate_spec", "gate_to_train"]

RANDOM_STD = 0.02  # transformers' initialisation of matrices


def gate_spec(spec: ModelSpec, options: GateOptions) -> ModelSpec:
    """The model with the gate that is trained, in place of its own.

    Raises BadInput without an RPN, or for more layers than there are to start from.
    """
    if spec.rpn is None:
        raise BadInput("this model has no RPN, and a gate decides whether to look where that points", options=("rpn",))
    layers = options.layers if options.kind == "layers" else 0
    if spec.tap_layer + layers > spec.llm.layers:
        raise BadInput(
            f"a gate of {layers} layers after layer {spec.tap_layer} needs {spec.tap_layer + layers} LLM layers to "
            f"start from; the LLM has {spec.llm.layers}",
            options=("gate_layers",),
        )
    rpn = dataclasses.replace(spec.rpn, gate_layers=layers, gate_probe=options.kind == "probe")
    return dataclasses.replace(spec, rpn=rpn)


def gate_to_train(checkpoint: Checkpoint, spec: ModelSpec, options: GateOptions) -> Gate:
    """A gate in float32 whose parameters all require a gradient. spec: of `gate_spec`.

    The head starts at small random numbers, by the seed.
    """
    gate = Gate(spec)
    generator = torch.Generator().manual_seed(options.seed)
    state = {}
    for key, tensor in gate.state_dict().items():
        layer = key.split(".", 2)
        if layer[0] == "layers" and options.start == "copied":
            name = f"llm.layers.{spec.tap_layer + int(layer[1])}.{layer[2]}"
            state[key] = torch.from_numpy(checkpoint.read(name).astype(np.float32, copy=True))
        elif tensor.dim() < 2:
            state[key] = torch.zeros_like(tensor) if key.endswith("bias") else torch.ones_like(tensor)
        else:
            state[key] = RANDOM_STD * torch.randn(tensor.shape, generator=generator)
    gate.load_state_dict(state)
    return gate.float().requires_grad_(True)
