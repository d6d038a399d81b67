"""RPNs for one model: trained ones from files, and an untrained one. PyTorch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from sdrpn.checkpoint import Checkpoint
from sdrpn.errors import BadInput
from sdrpn.method.policy import ModelPolicy
from sdrpn.method.spec import RpnSpec
from sdrpn.model.rpn import Rpn
from sdrpn.train.start import rpn_from_layers

__all__ = ["LoadedRpn", "rpn_of", "untrained_rpn"]


@dataclass(frozen=True)
class LoadedRpn:
    """An RPN, its tap layer, and its own policy."""

    module: Rpn
    tap_layer: int
    spec: RpnSpec
    policy: ModelPolicy | None = None  # by what it looks again; None: as the model does

    def to(self, device: str, dtype: torch.dtype) -> LoadedRpn:
        """The RPN moved to a device and precision."""
        return dataclasses.replace(self, module=self.module.to(device, dtype).eval().requires_grad_(False))


def rpn_of(checkpoint: Checkpoint) -> LoadedRpn:
    """The RPN of an open checkpoint, in float32. Raises BadInput where it has none."""
    spec = checkpoint.spec
    if spec.rpn is None:
        raise BadInput(f"{checkpoint.path} has no RPN; name one", options=("rpn",))
    with torch.device("meta"):  # no memory, no initialisation
        module = Rpn(spec)
    # A copy: the checkpoint's array maps a file.
    state = {
        key: torch.from_numpy(checkpoint.read(f"rpn.{key}").astype(np.float32, copy=True))
        for key in module.state_dict()
    }
    module.load_state_dict(state, assign=True)
    return LoadedRpn(module, spec.tap_layer, spec.rpn, checkpoint.policy)


def untrained_rpn(checkpoint: Checkpoint) -> LoadedRpn:
    """The initial weights of the checkpoint's RPN, before training. Raises BadInput where it has none."""
    spec = checkpoint.spec
    if spec.rpn is None:
        raise BadInput(f"{checkpoint.path} has no RPN; name one", options=("rpn",))
    return LoadedRpn(rpn_from_layers(checkpoint, spec.tap_layer, spec.rpn), spec.tap_layer, spec.rpn)
