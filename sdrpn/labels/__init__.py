"""Turn a model's own attention into pseudo-labels: which cells of an image a question is about, without annotation."""

from __future__ import annotations

from sdrpn.labels.denoise import BACKGROUND, FOREGROUND, IGNORED, LabelRule, PseudoLabels, denoise, usual_sinks

__all__ = ["BACKGROUND", "FOREGROUND", "IGNORED", "LabelRule", "PseudoLabels", "denoise", "usual_sinks"]
