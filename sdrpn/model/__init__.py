"""The model in plain PyTorch, and a simple two-pass inference as the reference for faster paths."""

from __future__ import annotations

from sdrpn.model.llava import LlavaBase, SdRpnModel, base_from_checkpoint, model_from_checkpoint

__all__ = ["LlavaBase", "SdRpnModel", "base_from_checkpoint", "model_from_checkpoint"]
