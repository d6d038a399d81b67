"""From a checkpoint's JSON files to a ModelSpec. Reads no weights.

Defaults are those of the classes that wrote the files (transformers' LlamaConfig, CLIPVisionConfig and LlavaConfig,
LLaVA's and SD-RPN's own), because all of them leave out what equals a default. What this package cannot run is
refused by name here, so that nothing is silently computed in another way.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.errors import BadCheckpoint
from sdrpn.spec import LlmSpec, ModelSpec, PromptSpec, RopeScaling, RpnSpec, VisionSpec

__all__ = ["ConfigSection", "read_config", "read_llm_layers", "read_spec", "vision_tower_name"]

_LLM_TYPES = ("llama", "vicuna", "llava_llama", "llava")  # "llava": the first LLaVA-1.5 files say so
_DEFAULT_MEAN, _DEFAULT_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ConfigSection:
    """A JSON object and where it stands, for messages. `null` counts as absent, as transformers writes it."""

    values: dict[str, Any]
    where: str

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or the default where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, value, "a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        """A number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def section(self, key: str, default: dict[str, Any] | None = None) -> ConfigSection:
        """An object inside this one."""
        value = self.get(key, {} if default is None else default)
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object")
        return ConfigSection(value, f"{self.where}: {key}")

    def require(self, key: str, *supported: object, default: object = None) -> None:
        """Refuse anything but the supported values; `default` is what absence means (None: it is supported)."""
        value = self.get(key, default)
        if value is not None and value not in supported:
            choices = " or ".join(json.dumps(choice) for choice in supported)
            raise BadCheckpoint(
                f"{self.where}: {key} is {json.dumps(value)}, which is not supported; expected {choices}"
            )

    def wrong(self, key: str, value: object, expected: str) -> BadCheckpoint:
        """An error about the type of an entry."""
        found = "missing" if value is None else repr(value)
        return BadCheckpoint(f"{self.where}: {key} is {found}; expected {expected}")


def read_config(path: Path) -> ConfigSection:
    """A JSON file that must be there. Raises BadCheckpoint where it is not, or is not a JSON object."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing; expected a checkpoint folder with a config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{path} is not JSON that can be read ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise BadCheckpoint(f"{path} is not a JSON object")
    return ConfigSection(values, str(path))


def vision_tower_name(config: ConfigSection) -> str | None:
    """`mm_vision_tower`: a path or a hub name. None for layouts that describe their tower in the config itself."""
    if not _is_original(config):
        return None
    name = config.get("mm_vision_tower", config.get("vision_tower"))
    if not isinstance(name, str) or not name:
        raise config.wrong("mm_vision_tower", name, "the folder or the hub name of a CLIP vision tower")
    return name


def read_spec(folder: Path, tower: Path | None) -> ModelSpec:
    """Describe the checkpoint in `folder`.

    Args:
        tower: the folder of the vision tower, for checkpoints in LLaVA's own layout; ignored for Hugging Face's
    Raises BadCheckpoint for what is missing, malformed or not supported.
    """
    config = read_config(folder / "config.json")
    config.require("quantization_config")
    return _original_spec(config, folder, tower) if _is_original(config) else _hf_spec(config, folder)


def read_llm_layers(folder: Path) -> int:
    """L of the checkpoint in `folder`, whichever layout it has."""
    config = read_config(folder / "config.json")
    return _llm_spec(config if _is_original(config) else config.section("text_config")).layers


def _is_original(config: ConfigSection) -> bool:
    return config.get("model_type") == "llava_llama" or "mm_vision_tower" in config.values


# LLaVA's own layout, with or without an RPN -------------------------------------------------------------------------


def _original_spec(config: ConfigSection, folder: Path, tower: Path | None) -> ModelSpec:
    config.require("mm_projector_type", "mlp2x_gelu", default="linear")
    config.require("mm_patch_merge_type", "flat")
    config.require("image_aspect_ratio", "pad", "square")  # images are padded in any case, as SD-RPN needs it
    config.require("mm_vision_select_feature", "patch")
    config.require("mm_use_im_start_end", False)
    if tower is None:
        raise BadCheckpoint(f"{config.where}: the vision tower has no config; name its folder with --vision-tower")
    llm = _llm_spec(config)
    vision = _vision_spec(_tower_config(tower), tower, select_layer=config.whole("mm_vision_select_layer", -2))
    if config.whole("mm_hidden_size", vision.width) != vision.width:
        raise BadCheckpoint(
            f"{tower} is the wrong vision tower: its width is {vision.width}, and {config.where} expects "
            f"{config.get('mm_hidden_size')} ({config.get('mm_vision_tower')}); name the right one with --vision-tower"
        )
    has_rpn = config.flag("enable_twig") and config.flag("roi_branch")
    return ModelSpec(
        vision=vision,
        llm=llm,
        tap_layer=config.whole("twig_K") if has_rpn else max(1, llm.layers // 2),
        rpn=_official_rpn(config) if has_rpn else None,
        prompt=_prompt_spec(config, config, folder, template="vicuna_v1", image_token_id=None),
    )


def _official_rpn(config: ConfigSection) -> RpnSpec:
    config.require("roi_source", "qk")
    config.require("roi_loss", "bce", "focal", "mse")
    return RpnSpec(
        layers=config.whole("twig_T"), multi_head=config.flag("roi_multi_head"), loss=config.get("roi_loss", "bce")
    )


def _tower_config(tower: Path) -> ConfigSection:
    config = read_config(tower / "config.json")
    return config.section("vision_config") if config.get("model_type") == "clip" else config


# Hugging Face's layouts ---------------------------------------------------------------------------------------------


def _hf_spec(config: ConfigSection, folder: Path) -> ModelSpec:
    config.require("model_type", "llava", default="missing")
    config.require("projector_hidden_act", "gelu")
    config.require("multimodal_projector_bias", True)
    config.require("vision_feature_select_strategy", "default")
    # A config without a vision_config means LLaVA-1.5's tower, one with an empty vision_config CLIP's base model.
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
    llm = _llm_spec(text, tied_by_default=config.flag("tie_word_embeddings"))
    return ModelSpec(
        vision=_vision_spec(vision_config, folder, select_layer=config.whole("vision_feature_layer", -2)),
        llm=llm,
        tap_layer=max(1, llm.layers // 2),
        prompt=_prompt_spec(
            text,
            config,
            folder,
            template=_chat_template(folder),
            image_token_id=config.whole("image_token_index", config.get("image_token_id", 32000)),
        ),
    )


def _chat_template(folder: Path) -> str:
    """The folder's Jinja template, newest place first; LLaVA-1.5's prompt where there is none."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text("utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = _optional(folder / name).get("chat_template")
        if isinstance(template, list):  # several, each with a name
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default", next(iter(named.values()), None))
        if isinstance(template, str):
            return template
    return "vicuna_v1"


# Parts that both have -----------------------------------------------------------------------------------------------


def _llm_spec(config: ConfigSection, *, tied_by_default: bool = False) -> LlmSpec:
    config.require("model_type", *_LLM_TYPES)
    config.require("hidden_act", "silu")
    config.require("attention_bias", False)
    config.require("mlp_bias", False)
    width, heads = config.whole("hidden_size", 4096), config.whole("num_attention_heads", 32)
    theta, scaling = _rope(config)
    return LlmSpec(
        vocabulary=config.whole("vocab_size", 32000),
        width=width,
        layers=config.whole("num_hidden_layers", 32),
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", heads),
        head_dim=config.whole("head_dim", width // max(heads, 1)),
        mlp_width=config.whole("intermediate_size", 11008),
        max_context=config.whole("max_position_embeddings", 2048),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=config.flag("tie_word_embeddings", tied_by_default),
    )


def _rope(config: ConfigSection) -> tuple[float, RopeScaling | None]:
    """transformers 5 writes rope_parameters; transformers 4 rope_theta and rope_scaling, with `type` or `rope_type`."""
    rope = config.section("rope_parameters", config.get("rope_scaling"))
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    for section in (config, rope):
        section.require("partial_rotary_factor", 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor", 1.0))
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            rope.number("factor", 8.0),
            low_freq_factor=rope.number("low_freq_factor", 1.0),
            high_freq_factor=rope.number("high_freq_factor", 4.0),
            original_context=rope.whole(
                "original_max_position_embeddings", config.whole("max_position_embeddings", 2048)
            ),
        )
    raise BadCheckpoint(f"{rope.where}: rope type {kind!r} is not supported; expected default, linear or llama3")


def _vision_spec(config: ConfigSection, folder: Path, *, select_layer: int) -> VisionSpec:
    config.require("model_type", "clip_vision_model")
    config.require("hidden_act", "quick_gelu", "gelu")
    config.require("num_channels", 3)
    mean, std = _normalisation(folder)
    return VisionSpec(
        image_size_px=config.whole("image_size", 224),
        patch_size_px=config.whole("patch_size", 32),
        width=config.whole("hidden_size", 768),
        layers=config.whole("num_hidden_layers", 12),
        heads=config.whole("num_attention_heads", 12),
        mlp_width=config.whole("intermediate_size", 3072),
        activation=config.get("hidden_act", "quick_gelu"),
        layer_norm_eps=config.number("layer_norm_eps", 1e-5),
        select_layer=select_layer,
        image_mean=mean,
        image_std=std,
    )


def _normalisation(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation per channel; CLIP's where the folder says nothing."""
    processor = _optional(folder / "preprocessor_config.json")
    if not processor.values:
        processor = _optional(folder / "processor_config.json").section("image_processor")
    return _rgb(processor, "image_mean", _DEFAULT_MEAN), _rgb(processor, "image_std", _DEFAULT_STD)


def _rgb(config: ConfigSection, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    value = config.get(key, default)
    try:
        red, green, blue = (float(channel) for channel in value)
    except (TypeError, ValueError):
        raise config.wrong(key, value, "three numbers") from None
    return red, green, blue


def _prompt_spec(
    tokens: ConfigSection, config: ConfigSection, folder: Path, *, template: str, image_token_id: int | None
) -> PromptSpec:
    generation = _optional(folder / "generation_config.json")
    return PromptSpec(
        template=template,
        image_token=_image_token(folder, image_token_id),
        image_token_id=image_token_id,
        bos_token_id=tokens.whole("bos_token_id", 1),
        eos_token_ids=_eos(generation if "eos_token_id" in generation.values else tokens),
        pad_token_id=tokens.get("pad_token_id", config.get("pad_token_id")),
    )


def _eos(config: ConfigSection) -> tuple[int, ...]:
    value = config.get("eos_token_id", 2)
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(token_id, int) for token_id in ids):
        raise config.wrong("eos_token_id", value, "a token id or a list of them")
    return ids


def _image_token(folder: Path, image_token_id: int | None) -> str:
    added = _optional(folder / "tokenizer_config.json").section("added_tokens_decoder")
    return str(added.section(str(image_token_id)).get("content", "<image>"))


def _optional(path: Path) -> ConfigSection:
    return read_config(path) if path.is_file() else ConfigSection({}, str(path))
