"""The inputs of a model's matrices on real questions about pictures. PyTorch, one layer at a time."""

from __future__ import annotations

from sdrpn.calibration.layer_inputs import LayerInputs
from sdrpn.calibration.prompts import CalibrationPrompts

__all__ = ["CalibrationPrompts", "LayerInputs"]
