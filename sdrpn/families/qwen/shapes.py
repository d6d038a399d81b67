"""Published sizes of these models, by name: what memory they need is known before a checkpoint is there.

Widths, layers and vocabularies are those of the base models' configs, K and T those of the official training scripts.
What they do not say is listed in `ASSUMED`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec

__all__ = ["ASSUMED", "SHAPES_3", "SHAPES_25"]

_CLIP = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_TOKENS = (256, 576)  # of the official evaluations
_EOS = PromptSpec(eos_token_ids=(151645,), bos_token_id=None, image_token="<|image_pad|>", image_token_id=151655)

_VISION_25 = Qwen25Vision(
    patch_size_px=14,
    width=1280,
    layers=32,
    heads=16,
    mlp_width=3420,
    least_pixels=_TOKENS[0] * 28**2,
    most_pixels=_TOKENS[1] * 28**2,
    **_CLIP,  # type: ignore[arg-type]
)
_VISION_3 = Qwen3Vision(
    patch_size_px=16,
    width=1024,
    layers=24,
    heads=16,
    mlp_width=4096,
    least_pixels=_TOKENS[0] * 32**2,
    most_pixels=_TOKENS[1] * 32**2,
    deepstack_layers=(5, 11, 17),
    **_HALVES,  # type: ignore[arg-type]
)
_VISION_3_8B = dataclasses.replace(_VISION_3, width=1152, layers=27, mlp_width=4304, deepstack_layers=(8, 16, 24))

_LLM_3B = LlmSpec(
    vocabulary=151936,
    width=2048,
    layers=36,
    heads=16,
    kv_heads=2,
    head_dim=128,
    mlp_width=11008,
    max_context=32768,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    attention_bias=True,
    tied_embeddings=True,
    rope_sections=(16, 24, 24),
)
_LLM_7B = dataclasses.replace(
    _LLM_3B,
    vocabulary=152064,
    width=3584,
    layers=28,
    heads=28,
    kv_heads=4,
    mlp_width=18944,
    tied_embeddings=False,
)
_LLM_4B = dataclasses.replace(
    _LLM_3B,
    width=2560,
    heads=32,
    kv_heads=8,
    mlp_width=9728,
    rope_theta=5e6,
    attention_bias=False,
    qk_norm=True,
    rope_sections=(24, 20, 20),
)
_LLM_8B = dataclasses.replace(_LLM_4B, width=4096, mlp_width=12288, tied_embeddings=False)

_ZOOM = RpnSpec(layers=3, scheme="q-zoom", rotary=True, outer_norm=False, gate_layers=3)
_ZOOM_3 = dataclasses.replace(_ZOOM, sink_query=True)
_SDRPN = RpnSpec(layers=3, scheme="sd-rpn", rotary=True, outer_norm=False, prune_above=1024)

SHAPES_25: Mapping[str, ModelSpec] = {
    "qwen2.5-vl-3b-sd-rpn": ModelSpec(_VISION_25, _LLM_3B, 21, _SDRPN, _EOS),
    "qwen2.5-vl-7b-sd-rpn": ModelSpec(_VISION_25, _LLM_7B, 16, _SDRPN, _EOS),
    "qwen2.5-vl-3b-q-zoom": ModelSpec(_VISION_25, _LLM_3B, 24, _ZOOM, _EOS),
    "qwen2.5-vl-7b-q-zoom": ModelSpec(_VISION_25, _LLM_7B, 18, _ZOOM, _EOS),
}
SHAPES_3: Mapping[str, ModelSpec] = {
    "qwen3-vl-4b-q-zoom": ModelSpec(_VISION_3, _LLM_4B, 24, _ZOOM_3, _EOS),
    "qwen3-vl-8b-q-zoom": ModelSpec(_VISION_3_8B, _LLM_8B, 24, _ZOOM_3, _EOS),
}

_SIZES_ASSUMED = "the base model's widths and layers as its config is known to have them; no checkpoint was at hand"
_GATE_ASSUMED = "a gate with as many layers as the RPN; checkpoints from before its training have none"
_TAP_ASSUMED = f"tap after layer {SHAPES_3['qwen3-vl-8b-q-zoom'].tap_layer}, an RPN of 3 layers, as published for 4B"

# Shape -> what no published file or script says of it, for people.
ASSUMED: Mapping[str, tuple[str, ...]] = {
    "qwen2.5-vl-3b-sd-rpn": (_SIZES_ASSUMED,),
    "qwen2.5-vl-7b-sd-rpn": (_SIZES_ASSUMED,),
    "qwen2.5-vl-3b-q-zoom": (_SIZES_ASSUMED, _GATE_ASSUMED),
    "qwen2.5-vl-7b-q-zoom": (_SIZES_ASSUMED, _GATE_ASSUMED),
    "qwen3-vl-4b-q-zoom": (_SIZES_ASSUMED, _GATE_ASSUMED),
    "qwen3-vl-8b-q-zoom": (_SIZES_ASSUMED, _GATE_ASSUMED, _TAP_ASSUMED),
}
