"""The precisions of `bundle/numerics.py` as PyTorch has them."""

from __future__ import annotations

import torch

from sdrpn.bundle.numerics import precision_named

__all__ = ["torch_dtype"]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def torch_dtype(precision: str) -> torch.dtype:
    """The torch dtype that a precision computes in. Raises BadInput for an unknown precision."""
    return _DTYPES[precision_named(precision).computes]
