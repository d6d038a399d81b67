"""From a checkpoint's JSON files to a ModelSpec. Reads no weights.

Defaults are those of the classes that wrote the files (transformers' LlamaConfig, CLIPVisionConfig and LlavaConfig,
LLaVA's and SD-RPN's own), because all of them omit values that equal a default. Features that this package does not
support are refused by name here, so that nothing is silently computed differently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sdrpn.checkpoint.config_section import ConfigSection, read_config
from sdrpn.checkpoint.prompt_config import TokenDefaults, chat_template, prompt_spec, token_ids
from sdrpn.errors import BadCheckpoint
from sdrpn.families.llava.conversations import USUAL_CONVERSATION
from sdrpn.families.llava.llm_config import llm_spec
from sdrpn.families.llava.unsupported import MODELS, refuse_foreign, require_supported
from sdrpn.families.llava.vision_config import tower_config, vision_spec
from sdrpn.method.spec import ModelSpec, RpnSpec

# Those of LlamaConfig in transformers.
_DEFAULTS = TokenDefaults({"bos_token_id": 1, "eos_token_id": 2}, "<image>", 32000)

__all__ = ["read_llm_layers", "read_spec", "vision_tower_name"]

# Model types of LLaVA's own layout: on LLaMA, on Mistral (BakLLaVA, LLaVA-Med), and ShareGPT4V's name for the first.
_ORIGINAL_TYPES = ("llava_llama", "llava_mistral", "share4v")
_MOST_PROJECTOR_LAYERS = 8


def vision_tower_name(config: ConfigSection) -> str | None:
    """`mm_vision_tower`: a path or a hub name. None for layouts that describe their tower in the config itself.

    Raises BadCheckpoint for a network that is not supported, before the user goes looking for its tower.
    """
    refuse_foreign(config)
    if not _is_original(config):
        return None
    _require_llava(config)
    name = config.get("mm_vision_tower", config.get("vision_tower"))
    if not isinstance(name, str) or not name:
        raise config.wrong("mm_vision_tower", name, "the folder or the hub name of a CLIP vision tower")
    return name


def read_spec(folder: Path, tower: Path | None, texts: Sequence[Path] = ()) -> ModelSpec:
    """Read the spec of the checkpoint in `folder`.

    Args:
        tower: the folder of the vision tower, for checkpoints in LLaVA's own layout; ignored for Hugging Face's
        texts: folders to search for the chat template, and the first of them for special tokens; by default only
            `folder`
    Raises BadCheckpoint for anything missing, malformed or not supported.
    """
    config = read_config(folder / "config.json")
    refuse_foreign(config)
    texts = texts or [folder]
    with config.naming():
        return _original_spec(config, texts, tower) if _is_original(config) else _hf_spec(config, folder, texts)


def _template(folders: Sequence[Path]) -> str:
    """The chat template of the first folder that has one."""
    return next((found for folder in folders if (found := chat_template(folder))), USUAL_CONVERSATION)


def read_llm_layers(folder: Path) -> int:
    """The number of LLM layers, L, of the checkpoint in `folder`, in any layout; it may be a language model alone."""
    config = read_config(folder / "config.json")
    refuse_foreign(config)
    alone = config.get("model_type") in ("llama", "mistral")
    with config.naming():
        return llm_spec(config if alone or _is_original(config) else config.section("text_config")).layers


def _is_original(config: ConfigSection) -> bool:
    return config.get("model_type") in _ORIGINAL_TYPES or "mm_vision_tower" in config.values


# LLaVA's own layout, with or without an RPN -------------------------------------------------------------------------


def _require_llava(config: ConfigSection) -> None:
    """Check everything that can be checked without the tower."""
    config.require("mm_patch_merge_type", "flat")
    config.require("image_aspect_ratio", "pad", "square")  # images are padded in either case, as SD-RPN needs
    config.require("mm_vision_select_feature", "patch")
    config.require("mm_use_im_start_end", False)
    _projector_layers(config)
    with config.naming():
        llm_spec(config)


def _original_spec(config: ConfigSection, texts: Sequence[Path], tower: Path | None) -> ModelSpec:
    _require_llava(config)
    if tower is None:
        raise BadCheckpoint(
            f"{config.where}: the vision tower has no config; name its folder", options=("vision_tower",)
        )
    llm = llm_spec(config)
    vision = vision_spec(
        tower_config(tower),
        tower,
        select_layer=_selected_layer(config, "mm_vision_select_layer"),
        projector_layers=_projector_layers(config),
    )
    if config.whole("mm_hidden_size", vision.width) != vision.width:
        raise BadCheckpoint(
            f"{tower} is the wrong vision tower: its width is {vision.width}, and {config.where} expects "
            f"{config.get('mm_hidden_size')} ({config.get('mm_vision_tower')}); name the right one",
            options=("vision_tower",),
        )
    has_rpn = config.flag("enable_twig") and config.flag("roi_branch")
    return ModelSpec(
        vision=vision,
        llm=llm,
        tap_layer=config.whole("twig_K") if has_rpn else max(1, llm.layers // 2),
        rpn=_official_rpn(config) if has_rpn else None,
        prompt=prompt_spec(
            config,
            config,
            texts[0],
            template=_original_template(config, texts),
            image_token_id=None,
            defaults=_DEFAULTS,
        ),
    )


def _projector_layers(config: ConfigSection) -> int:
    kind = config.get("mm_projector_type", "linear")
    if kind == "linear":
        return 1
    match = re.fullmatch(r"mlp(\d)x_gelu", kind) if isinstance(kind, str) else None
    if match is None or not 1 <= int(match[1]) <= _MOST_PROJECTOR_LAYERS:
        raise BadCheckpoint(
            f"{config.where}: mm_projector_type is {json.dumps(kind)}, which is not supported; expected linear or "
            f"mlpNx_gelu with N from 1 to {_MOST_PROJECTOR_LAYERS}"
        )
    return int(match[1])


def _original_template(config: ConfigSection, texts: Sequence[Path]) -> str:
    """LLaVA-1.5's own prompt; for Mistral the template of its tokenizer where it has one, as for LLaVA-Med."""
    return _template(texts) if config.get("model_type") == "llava_mistral" else USUAL_CONVERSATION


def _selected_layer(config: ConfigSection, key: str) -> int:
    """The selected layer, stored as a number or a list of one number."""
    value = config.get(key, -2)
    if isinstance(value, list) and len(value) == 1:
        return ConfigSection({key: value[0]}, config.where).whole(key)
    if isinstance(value, list):
        raise BadCheckpoint(
            f"{config.where}: {key} is {json.dumps(value)[:80]}: a projector that reads several layers, as ViP-LLaVA's "
            f"does, is not supported; expected one layer"
        )
    return config.whole(key, -2)


def _official_rpn(config: ConfigSection) -> RpnSpec:
    config.require("roi_source", "qk")
    config.require("roi_loss", "bce", "focal", "mse")
    return RpnSpec(
        layers=config.whole("twig_T"), multi_head=config.flag("roi_multi_head"), loss=config.get("roi_loss", "bce")
    )


# Hugging Face's layouts ---------------------------------------------------------------------------------------------


def _hf_spec(config: ConfigSection, folder: Path, texts: Sequence[Path]) -> ModelSpec:
    require_supported(config, "model_type", MODELS, "llava")
    config.require("model_type", "llava", default="missing")
    config.require("projector_hidden_act", "gelu")
    config.require("multimodal_projector_bias", True)
    config.require("vision_feature_select_strategy", "default")
    # No vision_config means the tower of LLaVA-1.5; an empty vision_config means CLIP's base model.
    vision_config = config.section(
        "vision_config",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    )
    text = config.section("text_config")
    llm = llm_spec(text, tied=config.flag("tie_word_embeddings"))
    return ModelSpec(
        vision=vision_spec(vision_config, folder, select_layer=_selected_layer(config, "vision_feature_layer")),
        llm=llm,
        tap_layer=max(1, llm.layers // 2),
        prompt=prompt_spec(
            text,
            config,
            texts[0],
            template=_template(texts),
            image_token_id=_image_token_id(config),
            defaults=_DEFAULTS,
        ),
    )


def _image_token_id(config: ConfigSection) -> int | None:
    """The id of the image token; None where there is none, which LLaVA's own -200 means."""
    keys = ("image_token_index", "image_token_id")
    if all(config.get(key) is None for key in keys):
        return 32000  # the default of LlavaConfig in transformers
    return next((token_id for key in keys for token_id in token_ids(config, key)), None)
