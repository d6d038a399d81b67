"""What a model's matrices are given to multiply, on real questions about pictures. PyTorch, a layer at a time."""

from __future__ import annotations

from sdrpn.calibration.layer_inputs import LayerInputs
from sdrpn.calibration.prompts import CalibrationPrompts

__all__ = ["CalibrationPrompts", "LayerInputs"]
