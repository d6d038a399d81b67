"""Untrained checkpoints of these families with random weights: see `sdrpn.checkpoint.random`.

Config and names are those of the official code of the kind that the spec describes: bare, SD-RPN's, or Q-Zoom's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from sdrpn.checkpoint.config_section import RANDOM_WEIGHTS
from sdrpn.checkpoint.random import write_byte_tokenizer, write_random_weights
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.errors import BadInput
from sdrpn.families.qwen.names import NameTable
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision, qwen_vision_of
from sdrpn.host.atomic import replacing_directory
from sdrpn.host.suggestion import unknown_choice
from sdrpn.method.spec import LlmSpec, ModelSpec

__all__ = ["write_random"]

_OLD, _NEW = "transformers-4", "transformers-5"
_MODEL_TYPES = {"qwen2.5-vl": "qwen2_5_vl", "qwen3-vl": "qwen3_vl"}


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
    """See `write_random_checkpoint`; the layouts are transformers-4, the usual one, and transformers-5.

    They differ for Qwen2.5-VL, whose tensors have been renamed.
    """
    layout = layout or _OLD
    if layout not in (_OLD, _NEW):
        raise BadInput(f"the layout {unknown_choice(layout, (_OLD, _NEW))}")
    names = _names(spec.vision.family, layout)
    shapes = tensor_shapes(spec)
    if spec.llm.tied_embeddings:
        del shapes["llm.head.weight"]
    with replacing_directory(path) as folder:
        _write_json(folder / "config.json", {**_config(spec, layout, dtype), RANDOM_WEIGHTS: True})
        _write_json(folder / "preprocessor_config.json", _processor(qwen_vision_of(spec)))
        if spec.prompt.template:
            (folder / "chat_template.jinja").write_text(spec.prompt.template, "utf-8")
        file_names = {name: names.file_name(name) for name in shapes}
        stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        write_random_weights(folder, shapes, file_names, stored, seed, _gains(spec, roi_gain))
        if with_tokenizer:
            _write_tokenizer(folder, spec)


def _names(family: str, layout: str) -> NameTable:
    if family == "qwen2.5-vl" and layout == _OLD:
        return NameTable("model.", "visual.", "lm_head.weight", family)
    return NameTable("model.language_model.", "model.visual.", "lm_head.weight", family)


def _gains(spec: ModelSpec, roi_gain: float) -> dict[str, float]:
    """What the RPN's queries are multiplied by: behind a norm of their heads, the norm alone counts."""
    if spec.rpn is None:
        return {}
    attention = f"rpn.layers.{spec.rpn.layers - 1}.attention"
    parts = ("q_norm.weight",) if spec.llm.qk_norm else ("q.weight", "q.bias")
    return {f"{attention}.{part}": roi_gain for part in parts}


# Configs, as the code of each kind writes them ----------------------------------------------------------------------


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def _config(spec: ModelSpec, layout: str, dtype: str) -> dict[str, Any]:
    text = _text_config(spec, layout)
    family, kind = spec.vision.family, _MODEL_TYPES[spec.vision.family]
    image_id = spec.prompt.image_token_id
    top: dict[str, Any] = {
        "model_type": kind,
        "torch_dtype": dtype,
        "tie_word_embeddings": spec.llm.tied_embeddings,
        **({} if image_id is None else {"image_token_id": image_id}),
        "vision_config": _vision_config(qwen_vision_of(spec), spec.llm),
    }
    if family == "qwen2.5-vl" and layout == _OLD:
        top |= text
    else:
        top["text_config"] = {"model_type": f"{kind}_text", **text}
    return top | _method_config(spec)


def _text_config(spec: ModelSpec, layout: str) -> dict[str, Any]:
    llm, prompt = spec.llm, spec.prompt
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": list(llm.rope_sections)}
    if spec.vision.family == "qwen3-vl":
        rope["mrope_interleaved"] = True
    turning = (
        {"rope_theta": llm.rope_theta, "rope_scaling": rope}
        if layout == _OLD
        else {"rope_parameters": {**rope, "rope_theta": llm.rope_theta}}
    )
    eos = prompt.eos_token_ids
    return {
        "hidden_act": "silu",
        "hidden_size": llm.width,
        "intermediate_size": llm.mlp_width,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "head_dim": llm.head_dim,
        "max_position_embeddings": llm.max_context,
        "rms_norm_eps": llm.rms_norm_eps,
        "vocab_size": llm.vocabulary,
        "use_sliding_window": False,
        "bos_token_id": prompt.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else list(eos),
        "pad_token_id": prompt.pad_token_id,
        **turning,
    }


def _vision_config(vision: Qwen25Vision | Qwen3Vision, llm: LlmSpec) -> dict[str, Any]:
    config: dict[str, Any] = {
        "depth": vision.layers,
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width,
        "num_heads": vision.heads,
        "in_channels": 3,
        "out_hidden_size": llm.width,
        "patch_size": vision.patch_size_px,
        "spatial_merge_size": vision.merge,
        "temporal_patch_size": vision.frames,
    }
    if isinstance(vision, Qwen25Vision):
        return config | {
            "hidden_act": "silu",
            "fullatt_block_indexes": list(vision.full_layers),
            "window_size": vision.window_px,
        }
    return config | {
        "hidden_act": "gelu_pytorch_tanh",
        "num_position_embeddings": vision.position_side**2,
        "deepstack_visual_indexes": list(vision.deepstack_layers),
    }


def _method_config(spec: ModelSpec) -> dict[str, Any]:
    """The entries of SD-RPN's code, and those that only Q-Zoom's writes."""
    rpn = spec.rpn
    if rpn is None:
        return {}
    config: dict[str, Any] = {
        "enable_twig": True,
        "roi_branch": True,
        "roi_loss": rpn.loss,
        "roi_multi_head": rpn.multi_head,
        "roi_source": "qk",
        "twig_K": spec.tap_layer,
        "twig_T": rpn.layers,
    }
    if rpn.scheme == "q-zoom":
        config |= {"enable_high_res": rpn.gate_layers > 0, "reuse_src_pos": rpn.reuse_positions}
    if rpn.gate_layers:
        config["high_res_T"] = rpn.gate_layers
    return config


def _processor(vision: Qwen25Vision | Qwen3Vision) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "merge_size": vision.merge,
        "min_pixels": vision.least_pixels,
        "max_pixels": vision.most_pixels,
        "patch_size": vision.patch_size_px,
        "resample": 3,
        "temporal_patch_size": vision.frames,
    }


def _write_tokenizer(folder: Path, spec: ModelSpec) -> None:
    """Bytes, and the special tokens that the chat templates of these families write."""
    write_byte_tokenizer(folder / "tokenizer.json", spec, _special_tokens(spec))
    image_id, image = spec.prompt.image_token_id, spec.prompt.image_token
    added = {} if image_id is None else {str(image_id): {"content": image, "special": True}}
    _write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": added})


def _special_tokens(spec: ModelSpec) -> dict[int, str]:
    """Ids and texts. Those without an id in the spec take the highest free ones."""
    prompt = spec.prompt
    texts: dict[int, str] = {}
    if prompt.image_token_id is not None:
        texts[prompt.image_token_id] = prompt.image_token
    wanted = {"<|im_end|>": next(iter(prompt.eos_token_ids), None), "<|im_start|>": prompt.bos_token_id}
    wanted |= {"<|vision_start|>": None, "<|vision_end|>": None}
    free = iter(range(spec.llm.vocabulary - 1, -1, -1))
    known = {*texts, *prompt.eos_token_ids, prompt.bos_token_id}
    for text, asked in wanted.items():
        token_id = asked if asked is not None and asked not in texts else next(i for i in free if i not in known)
        texts[token_id] = text
    return texts
