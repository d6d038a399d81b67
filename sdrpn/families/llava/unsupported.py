"""Models that may be mistaken for LLaVA-1.5: what each is, and what to use instead. Tables of names.

The method needs the network of LLaVA-1.5: one CLIP tower, one token grid per picture, a LLaMA or Mistral decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from sdrpn.checkpoint.config_section import ConfigSection
from sdrpn.errors import BadCheckpoint

__all__ = ["MODELS", "TEXT_MODELS", "TOWERS", "refuse_foreign", "refuse_foreign_tower", "require_supported"]

_INSTEAD = "use a model that has LLaVA-1.5's network, e.g. llava-hf/llava-1.5-7b-hf"

MODELS = {
    "llava_next": "LLaVA-NeXT (1.6), which reads a picture in tiles",
    "llava_next_video": "LLaVA-NeXT-Video, which reads a video's frames",
    "llava_onevision": "LLaVA-OneVision, which has a SigLIP tower and reads a picture in tiles",
    "vipllava": "ViP-LLaVA, whose projector reads several layers of its tower",
    "video_llava": "Video-LLaVA, which has LanguageBind towers",
    "llava_phi": "LLaVA-Phi, whose language model is Phi",
    "llava_qwen": "a LLaVA whose language model is Qwen",
    "llava_qwen2": "a LLaVA whose language model is Qwen2",
    "llava_mpt": "a LLaVA whose language model is MPT",
    "llava_mixtral": "a LLaVA whose language model is Mixtral",
    "tinyllava": "TinyLLaVA, which has a SigLIP tower and other language models",
    "mobilevlm": "MobileVLM, whose projector merges tokens",
    "qwen2_vl": "Qwen2-VL",
    "mistral3": "Mistral 3 with a Pixtral tower",
    "paligemma": "PaliGemma",
    "internvl": "InternVL",
    "llama": "a language model without a vision tower: name it as the base of a fine-tune",
    "mistral": "a language model without a vision tower: name it as the base of a fine-tune",
}
TEXT_MODELS = MODELS | {
    "qwen2": "Qwen2, whose attention has biases",
    "qwen3": "Qwen3, which normalises queries and keys",
    "phi": "Phi",
    "phi3": "Phi-3",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "mixtral": "Mixtral, which has experts",
    "mpt": "MPT",
    "opt": "OPT",
    "gpt_neox": "GPT-NeoX",
}
TOWERS = {
    "siglip": "a SigLIP tower, which has no class token and normalises pixels differently",
    "siglip_vision_model": "a SigLIP tower, which has no class token and normalises pixels differently",
    "siglip2_vision_model": "a SigLIP 2 tower, which has no class token and normalises pixels differently",
    "pixtral": "a Pixtral tower, whose grid depends on the picture",
    "eva_clip": "an EVA-CLIP tower",
    "dinov2": "a DINOv2 tower",
    "intern_vit_6b": "an InternViT tower",
    "LanguageBindImage": "a LanguageBind tower",
    "convnext": "a ConvNeXt tower",
}
# Parts of the hub names of towers: a config names its tower before it is downloaded.
_TOWER_NAMES = {
    "siglip": "a SigLIP tower",
    "eva02": "an EVA tower",
    "eva-clip": "an EVA-CLIP tower",
    "dinov2": "a DINOv2 tower",
    "internvit": "an InternViT tower",
    "languagebind": "a LanguageBind tower",
    "convnext": "a ConvNeXt tower",
}
# Entries that only configs of other models have; absent, null or false in LLaVA-1.5's.
_FOREIGN_ENTRIES = {
    "mm_video_tower": "a video tower, as Video-LLaVA has",
    "mm_image_tower": "a LanguageBind tower, as Video-LLaVA has",
    "s2": "S2, which reads a picture at several scales",
    "s2_scales": "S2, which reads a picture at several scales",
    "mm_resampler_type": "a resampler between tower and projector",
    "mm_vision_tower_aux": "a second vision tower, as Mini-Gemini and LLaVA-HR have",
}
_TILES = "pictures in tiles, as LLaVA-NeXT (1.6) reads them"
_QUANTIZERS = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "quanto": "quanto",
    "torchao": "torchao",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "eetq": "EETQ",
}


def require_supported(config: ConfigSection, key: str, known: Mapping[str, str], *supported: str) -> None:
    """Refuse all but the supported values, and say what the value means where it is known."""
    value = config.get(key)
    if value is None or value in supported:
        return
    meaning = known.get(value) if isinstance(value, str) else None
    choices = " or ".join(json.dumps(choice) for choice in supported)
    if meaning is None:
        config.require(key, *supported)
    raise BadCheckpoint(
        f"{config.where}: {key} is {json.dumps(value)} ({meaning}), which is not supported; expected {choices}; "
        f"{_INSTEAD}"
    )


def refuse_foreign(config: ConfigSection) -> None:
    """Raise BadCheckpoint for quantised weights and for entries that only configs of other models have."""
    _refuse_quantized(config)
    for key, meaning in _FOREIGN_ENTRIES.items():
        value = config.get(key)
        if value not in (None, False, "", []):
            raise BadCheckpoint(
                f"{config.where}: {key} is {_short(value)} ({meaning}), which is not supported; {_INSTEAD}"
            )
    aspect, merge = config.get("image_aspect_ratio"), config.get("mm_patch_merge_type")
    for key, value in (("mm_patch_merge_type", merge), ("image_aspect_ratio", aspect)):
        if isinstance(value, str) and ("anyres" in value or "spatial" in value):
            raise BadCheckpoint(
                f"{config.where}: {key} is {_short(value)} ({_TILES}), which is not supported; {_INSTEAD}"
            )


def refuse_foreign_tower(config: ConfigSection, name: str) -> None:
    """Raise BadCheckpoint for a tower whose name is not one of CLIP's, before it is searched for or downloaded."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    meaning = next((meaning for part, meaning in _TOWER_NAMES.items() if part in last), None)
    if meaning is not None:
        raise BadCheckpoint(
            f"{config.where}: mm_vision_tower is {_short(name)} ({meaning}), which is not supported; expected a CLIP "
            f"tower; {_INSTEAD}"
        )


def _refuse_quantized(config: ConfigSection) -> None:
    if config.get("quantization_config") is None:
        return
    section = config.section("quantization_config")
    method = section.get("quant_method")
    # The first configs of bitsandbytes do not name the method.
    if method is None and section.get("load_in_4bit", section.get("load_in_8bit")):
        method = "bitsandbytes"
    named = "by an unnamed method" if method is None else _QUANTIZERS.get(str(method), _short(method))
    raise BadCheckpoint(
        f"{section.where}: the weights are quantised ({named}), which is not supported; use the checkpoint from before "
        f"that, and quantise it in the export",
        options=("precision int8", "precision int4"),
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
