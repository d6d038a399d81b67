"""From a config to the vision tower's description."""

from __future__ import annotations

from pathlib import Path

from sdrpn.checkpoint.config_section import ConfigSection, read_config, read_optional_config
from sdrpn.checkpoint.unsupported import TOWERS, require_supported
from sdrpn.spec import VisionSpec

__all__ = ["tower_config", "vision_spec"]

_DEFAULT_MEAN, _DEFAULT_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tower_config(tower: Path) -> ConfigSection:
    """The config of a tower in a folder of its own, alone or as a part of CLIP."""
    config = read_config(tower / "config.json")
    return config.section("vision_config") if config.get("model_type") == "clip" else config


def vision_spec(config: ConfigSection, folder: Path, *, select_layer: int, projector_layers: int = 2) -> VisionSpec:
    """The tower that `config` describes; how pictures are normalised stands in other files of `folder`."""
    require_supported(config, "model_type", TOWERS, "clip_vision_model")
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
        projector_layers=projector_layers,
        image_mean=mean,
        image_std=std,
    )


def _normalisation(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation per channel; CLIP's where the folder says nothing."""
    processor = read_optional_config(folder / "preprocessor_config.json")
    if not processor.values:
        processor = read_optional_config(folder / "processor_config.json").section("image_processor")
    return _rgb(processor, "image_mean", _DEFAULT_MEAN), _rgb(processor, "image_std", _DEFAULT_STD)


def _rgb(config: ConfigSection, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    value = config.get(key, default)
    try:
        red, green, blue = (float(channel) for channel in value)
    except (TypeError, ValueError, OverflowError):
        raise config.wrong(key, value, "three numbers") from None
    return red, green, blue
