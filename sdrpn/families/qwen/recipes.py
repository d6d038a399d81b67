"""Heads and training numbers of the official pipelines, by model. Tables alone."""

from __future__ import annotations

from collections.abc import Mapping

from sdrpn.method.recipe import HeadTable, Recipe
from sdrpn.method.spec import Scheme

__all__ = ["HEADS_3", "HEADS_25", "RECIPES_3", "RECIPES_25"]

# Q-Zoom's script of pseudo labels: one table for questions about text, one for questions about natural scenes.
HEADS_25: Mapping[str, HeadTable] = {
    "qwen2.5-vl-3b-text": HeadTable({20: (1, 4), 22: (14,)}),
    "qwen2.5-vl-3b-natural": HeadTable({21: (9, 11), 22: (0, 7)}, {8: (1, 13)}),
    "qwen2.5-vl-7b-text": HeadTable({22: (1, 4), 23: (6, 11)}),
    "qwen2.5-vl-7b-natural": HeadTable({16: (1, 7, 17), 19: (17, 20)}, {9: (4, 22)}),
}
_NATURAL_3 = {20: (15, 21, 23), 21: (8, 10, 11)}
HEADS_3: Mapping[str, HeadTable] = {
    "qwen3-vl-4b-text": HeadTable({19: (24, 27), 24: (21, 23)}, {24: (6, 10)}),
    "qwen3-vl-4b-natural": HeadTable(_NATURAL_3, {20: (1, 24)}),
    "qwen3-vl-8b-text": HeadTable({19: (24, 26, 27), 24: (21, 22, 23)}, {24: (1, 2)}),
    "qwen3-vl-8b-natural": HeadTable(_NATURAL_3, {21: (7,)}),
}


def _recipe(tap_layer: int, scheme: Scheme = "q-zoom") -> Recipe:
    # The scripts leave AdamW's betas at their defaults.
    return Recipe(scheme, tap_layer, 3, learning_rate=1e-4, batch=128, betas=(0.9, 0.999))


RECIPES_25: Mapping[str, Recipe] = {
    "qwen2.5-vl-3b": _recipe(24),
    "qwen2.5-vl-7b": _recipe(18),
    "qwen2.5-vl-3b-sd-rpn": _recipe(21, "sd-rpn"),
    "qwen2.5-vl-7b-sd-rpn": _recipe(16, "sd-rpn"),
}
RECIPES_3: Mapping[str, Recipe] = {"qwen3-vl-4b": _recipe(24)}
