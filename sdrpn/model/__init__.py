"""The model in plain PyTorch, and the slow two-pass inference that everything faster is compared with."""

from __future__ import annotations

from sdrpn.model.llava import SdRpnModel, model_from_checkpoint

__all__ = ["SdRpnModel", "model_from_checkpoint"]
