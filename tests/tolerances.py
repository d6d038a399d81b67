"""How far results may lie apart, and why. One place for all tests."""

from __future__ import annotations

# Sigmoid, blur and bilinear weights are a dozen float32 operations on values up to 1 (logits: up to 10).
ROI_MAP_ABS = 1e-6
RESIZED_FEATURES_ABS = 1e-6
