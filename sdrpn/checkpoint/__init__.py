"""Read checkpoints of every known layout as one set of named tensors. No PyTorch, unless the files are PyTorch's."""

from __future__ import annotations

from sdrpn.checkpoint.checkpoint import Checkpoint, open_checkpoint
from sdrpn.checkpoint.prompt_config import named_template
from sdrpn.checkpoint.random import write_random_checkpoint
from sdrpn.checkpoint.rpn_file import RpnFile, read_rpn, write_rpn
from sdrpn.checkpoint.tensor_shapes import tensor_shapes

__all__ = [
    "Checkpoint",
    "RpnFile",
    "named_template",
    "open_checkpoint",
    "read_rpn",
    "tensor_shapes",
    "write_random_checkpoint",
    "write_rpn",
]
