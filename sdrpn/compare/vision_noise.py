"""The noise of the vision tower by itself, beside that of the same tower in bf16. PyTorch.

A tower in low precision loses detail that neither the map nor the text shows until a picture depends on it. The measure
is the relative error of all its outputs as one vector, against float32.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch

from sdrpn.bundle.bundle import Variant
from sdrpn.bundle.tolerances import tolerances_of
from sdrpn.compare.graphs import Array, Check
from sdrpn.compare.trials import Trial
from sdrpn.families.registry import family_of
from sdrpn.model.base import SdRpnModel

__all__ = ["TowerNoise"]


class TowerNoise:
    """Measures runs of a model's vision graph. Its tower in bf16 is made when it is first needed."""

    def __init__(self, model: SdRpnModel) -> None:
        self._model = model
        self._known: dict[str, float] = {}  # by run: of the tower in bf16

    def check(self, variant: Variant, trial: Trial, results: Mapping[str, Array]) -> Check | None:
        """The noise of one run; None where an output is missing or of another shape, which other checks report."""
        pairs = [(results.get(name), expected) for name, expected in trial.expected.items()]
        found = [array for array, expected in pairs if array is not None and array.shape == expected.shape]
        if len(found) < len(pairs):
            return None
        if trial.label not in self._known:
            self._known[trial.label] = _error(self._in_bf16(trial), list(trial.expected.values()))
        usual, noise = self._known[trial.label], _error(found, list(trial.expected.values()))
        limit = max(usual, tolerances_of(variant.numerics).noise)
        return Check(
            variant.name,
            "vision",
            "noise",
            trial.label,
            noise if np.isfinite(noise) else "not a finite number",
            limit=limit,
            ok=noise <= limit,
            note=f"relative error {noise:.1e} of float32; the tower in bf16 has {usual:.1e}",
        )

    @torch.inference_mode()
    def _in_bf16(self, trial: Trial) -> list[Array]:
        tower = copy.deepcopy(self._model.vision).to(torch.bfloat16)
        look = [trial.feeds[tensor.name] for tensor in family_of(self._model.spec).vision_inputs(self._model.spec)]
        tensors = [torch.from_numpy(array) for array in look]
        features = tower.features(*(each.bfloat16() if each.is_floating_point() else each for each in tensors))
        return [each.float().numpy() for each in (features.embeds, *features.deepstack)]


def _error(found: list[Array], expected: list[Array]) -> float:
    """|found - expected| / |expected|, of everything as one vector."""
    difference = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(found, expected, strict=True))
    length = sum(float(np.square(array.astype(np.float64)).sum()) for array in expected)
    return float(np.sqrt(difference / length)) if length else float(np.sqrt(difference))
