"""Model shapes that are measured: LLaVA-1.5 in its published sizes, and a small one."""

from __future__ import annotations

from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec

CLIP = VisionSpec(image_size_px=336, patch_size_px=14, width=1024, layers=24, heads=16, mlp_width=4096)
SMALL_CLIP = VisionSpec(image_size_px=336, patch_size_px=14, width=256, layers=5, heads=4, mlp_width=1024)


def _llm(width: int, layers: int, head_dim: int, mlp_width: int) -> LlmSpec:
    heads = width // head_dim
    return LlmSpec(32000, width, layers, heads, heads, head_dim, mlp_width, max_context=4096)


def _model(vision: VisionSpec, llm: LlmSpec, tap_layer: int) -> ModelSpec:
    # Random weights say the stop token as soon as any other: answers should have their full length.
    return ModelSpec(vision, llm, tap_layer, RpnSpec(layers=3), PromptSpec(eos_token_ids=(0,)))


# The published SD-RPN checkpoints tap after layer 15 of 32 (7B) and 15 of 40 (13B).
SHAPES = {
    "0.4b": _model(SMALL_CLIP, _llm(2048, 8, 64, 5504), 4),
    "7b": _model(CLIP, _llm(4096, 32, 128, 11008), 15),
    "7b-8": _model(CLIP, _llm(4096, 8, 128, 11008), 4),  # its matrices, in a quarter of its layers
    "13b": _model(CLIP, _llm(5120, 40, 128, 13824), 15),
}
