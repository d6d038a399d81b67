"""Model descriptions that are small enough to run in milliseconds, and still exercise every branch."""

from __future__ import annotations

import dataclasses
from typing import Any

from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec

__all__ = ["TWO_LAYER_RPN", "tiny_llm", "tiny_spec", "tiny_vision"]

TWO_LAYER_RPN = RpnSpec(layers=2)


def tiny_vision(**changes: Any) -> VisionSpec:
    """4 x 4 cells."""
    spec = VisionSpec(image_size_px=32, patch_size_px=8, width=24, layers=3, heads=2, mlp_width=40)
    return dataclasses.replace(spec, **changes)


def tiny_llm(**changes: Any) -> LlmSpec:
    """Two key heads for four query heads, which are not as wide as the model together."""
    spec = LlmSpec(vocabulary=300, width=48, layers=4, heads=4, kv_heads=2, head_dim=16, mlp_width=56, max_context=256)
    return dataclasses.replace(spec, **changes)


def tiny_spec(
    *, rpn: RpnSpec | None = TWO_LAYER_RPN, image_token_id: int | None = None, tap_layer: int = 2, **llm: Any
) -> ModelSpec:
    """`llm`: what differs from `tiny_llm`."""
    prompt = PromptSpec(image_token_id=image_token_id)
    return ModelSpec(tiny_vision(), tiny_llm(**llm), tap_layer=tap_layer, rpn=rpn, prompt=prompt)
