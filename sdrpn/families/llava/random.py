"""Untrained checkpoints of this family with random weights, in any of its layouts: see `sdrpn.checkpoint.random`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdrpn.checkpoint.config_section import RANDOM_WEIGHTS
from sdrpn.checkpoint.random import write_byte_tokenizer, write_random_weights
from sdrpn.checkpoint.tensor_shapes import Shapes, tensor_shapes
from sdrpn.errors import BadInput
from sdrpn.families.llava.names import HF_OLD, LLAVA, SDRPN, clip_name
from sdrpn.families.llava.vision_spec import VisionSpec, clip_of
from sdrpn.host.atomic import replacing_directory
from sdrpn.host.suggestion import unknown_choice
from sdrpn.method.spec import LlmSpec, ModelSpec

__all__ = ["write_random"]

_LAYOUTS = {"sdrpn": SDRPN, "llava": LLAVA, "hf": HF_OLD}


def write_random(
    path: Path | str,
    spec: ModelSpec,
    *,
    layout: str | None,
    seed: int,
    dtype: str,
    with_tokenizer: bool,
    roi_gain: float,
) -> None:
    """See `sdrpn.checkpoint.random.write_random_checkpoint`; the layouts are sdrpn (the usual one), llava and hf.

    The first two store the vision tower in `clip/`.
    """
    layout = layout or "sdrpn"
    if layout not in _LAYOUTS:
        raise BadInput(f"the layout {unknown_choice(layout, _LAYOUTS)}")
    if spec.rpn is not None and layout != "sdrpn":
        raise BadInput(f"the layout {layout} has no place for an RPN; use sdrpn, or a spec without one")
    if clip_of(spec).projector_width not in (0, spec.llm.width):
        raise BadInput(f"a projector {clip_of(spec).projector_width} wide cannot be written; expected {spec.llm.width}")
    if clip_of(spec).projector_layers != 2 and layout == "hf":
        raise BadInput(f"the layout hf has projectors of 2 layers; got {clip_of(spec).projector_layers}: use llava")
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    shapes = tensor_shapes(spec)
    if spec.llm.tied_embeddings:
        del shapes["llm.head.weight"]
    with replacing_directory(path) as folder:
        if layout == "hf":
            _write_json(folder / "config.json", {**_hf_config(spec, dtype), RANDOM_WEIGHTS: True})
            _write_json(folder / "preprocessor_config.json", _preprocessor_config(clip_of(spec)))
            own = shapes
        else:
            _write_json(folder / "config.json", {**_llava_config(spec, dtype), RANDOM_WEIGHTS: True})
            _write_tower(folder / "clip", spec, shapes, seed, stored)
            own = {name: shape for name, shape in shapes.items() if not name.startswith("vision.")}
        names = _LAYOUTS[layout]
        if clip_of(spec).projector_layers == 1:
            names = names.with_linear_projector()
        file_names = {name: names.file_name(name) for name in own}
        write_random_weights(folder, own, file_names, stored, seed, _gains(spec, roi_gain))
        if with_tokenizer:
            write_byte_tokenizer(folder / "tokenizer.json", spec)


def _gains(spec: ModelSpec, roi_gain: float) -> dict[str, float]:
    return {} if spec.rpn is None else {f"rpn.layers.{spec.rpn.layers - 1}.attention.q.weight": roi_gain}


def _write_tower(folder: Path, spec: ModelSpec, shapes: Shapes, seed: int, dtype: np.dtype[Any]) -> None:
    folder.mkdir()
    own = {name: shape for name, shape in shapes.items() if name.startswith("vision.")}
    file_names = {name: "vision_model." + clip_name(name.removeprefix("vision.")) for name in own}
    _write_json(folder / "config.json", _clip_config(clip_of(spec)))
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(clip_of(spec)))
    write_random_weights(folder, own, file_names, dtype, seed, {})


# Configs, as the code of each layout writes them ----------------------------------------------------------------------


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _llm_config(llm: LlmSpec) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "head_dim": llm.head_dim,
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "intermediate_size": llm.mlp_width,
        "max_position_embeddings": llm.max_context,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "rms_norm_eps": llm.rms_norm_eps,
        "rope_scaling": _rope_scaling(llm),
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": llm.tied_embeddings,
        "vocab_size": llm.vocabulary,
        **({} if llm.sliding_window is None else {"sliding_window": llm.sliding_window}),
    }


def _rope_scaling(llm: LlmSpec) -> dict[str, Any] | None:
    scaling = llm.rope_scaling
    if scaling is None:
        return None
    if scaling.kind in ("linear", "dynamic"):
        return {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_context,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.amplitude,
            "truncate": scaling.truncate,
        }
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }


def _token_config(spec: ModelSpec) -> dict[str, Any]:
    eos = spec.prompt.eos_token_ids
    return {
        "bos_token_id": spec.prompt.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": spec.prompt.pad_token_id,
    }


def _llava_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    config = _llm_config(spec.llm) | _token_config(spec)
    config |= {
        "architectures": ["LlavaLlamaForCausalLM"],
        "image_aspect_ratio": "pad",
        "mm_hidden_size": clip_of(spec).width,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": _projector_type(clip_of(spec).projector_layers),
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": clip_of(spec).select_layer,
        "mm_vision_tower": "./clip",
        "model_type": "llava_llama" if spec.llm.sliding_window is None else "llava_mistral",
        "torch_dtype": dtype,
    }
    if spec.rpn is not None:
        config |= {
            "enable_twig": True,
            "roi_branch": True,
            "roi_loss": spec.rpn.loss,
            "roi_multi_head": spec.rpn.multi_head,
            "roi_source": "qk",
            "twig_K": spec.tap_layer,
            "twig_T": spec.rpn.layers,
        }
    return config


def _projector_type(layers: int) -> str:
    return "linear" if layers == 1 else f"mlp{layers}x_gelu"


def _hf_config(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    image_token_id = spec.prompt.image_token_id
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "image_seq_length": spec.vision.image_tokens,
        "image_token_index": spec.llm.vocabulary - 1 if image_token_id is None else image_token_id,
        "model_type": "llava",
        "projector_hidden_act": "gelu",
        "text_config": {"model_type": "llama" if spec.llm.sliding_window is None else "mistral"}
        | _llm_config(spec.llm)
        | _token_config(spec),
        "tie_word_embeddings": spec.llm.tied_embeddings,
        "torch_dtype": dtype,
        "vision_config": _clip_config(clip_of(spec)),
        "vision_feature_layer": clip_of(spec).select_layer,
        "vision_feature_select_strategy": "default",
    }


def _clip_config(vision: VisionSpec) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        "hidden_act": vision.activation,
        "hidden_size": vision.width,
        "image_size": vision.image_size_px,
        "intermediate_size": vision.mlp_width,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "clip_vision_model",
        "num_attention_heads": vision.heads,
        "num_channels": 3,
        "num_hidden_layers": vision.layers,
        "patch_size": vision.patch_size_px,
    }


def _preprocessor_config(vision: VisionSpec) -> dict[str, Any]:
    side = vision.image_size_px
    return {
        "crop_size": {"height": side, "width": side},
        "image_mean": list(vision.image_mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(vision.image_std),
        "resample": 3,
        "size": {"shortest_edge": side},
    }
