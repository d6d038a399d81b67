"""The model in plain PyTorch, and a simple two-pass inference as the reference for faster paths."""

from __future__ import annotations

from sdrpn.model.base import BaseModel, SdRpnModel, base_from_checkpoint, model_from_checkpoint

__all__ = ["BaseModel", "SdRpnModel", "base_from_checkpoint", "model_from_checkpoint"]


def __getattr__(name: str) -> object:
    """Names that this package had in the previous release, kept for one version."""
    from sdrpn._moved import name_of

    return name_of(__name__, name)
