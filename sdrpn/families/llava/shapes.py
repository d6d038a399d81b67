"""Published sizes of these models, by name: what memory they need is known before a checkpoint is there."""

from __future__ import annotations

from collections.abc import Mapping

from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, RpnSpec

__all__ = ["SHAPES"]

_CLIP = VisionSpec(image_size_px=336, patch_size_px=14, width=1024, layers=24, heads=16, mlp_width=4096)


def _model(width: int, layers: int, mlp_width: int) -> ModelSpec:
    heads = width // 128
    llm = LlmSpec(32000, width, layers, heads, heads, 128, mlp_width, max_context=4096)
    return ModelSpec(_CLIP, llm, 15, RpnSpec(layers=3))  # the published checkpoints tap after layer 15


SHAPES: Mapping[str, ModelSpec] = {
    "llava-1.5-7b-sd-rpn": _model(4096, 32, 11008),
    "llava-1.5-13b-sd-rpn": _model(5120, 40, 13824),
}
