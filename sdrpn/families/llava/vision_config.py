"""From a config to the spec of the vision tower."""

from __future__ import annotations

from pathlib import Path

from sdrpn.checkpoint.config_section import ConfigSection, read_config
from sdrpn.families.llava.processor_config import read_processor
from sdrpn.families.llava.unsupported import TOWERS, require_supported
from sdrpn.families.llava.vision_spec import VisionSpec

__all__ = ["tower_config", "vision_spec"]


def tower_config(tower: Path) -> ConfigSection:
    """The config of a tower in its own folder, alone or as a part of CLIP."""
    config = read_config(tower / "config.json")
    return config.section("vision_config") if config.get("model_type") == "clip" else config


def vision_spec(config: ConfigSection, folder: Path, *, select_layer: int, projector_layers: int = 2) -> VisionSpec:
    """The tower that `config` describes; how pictures are normalised is in other files of `folder`."""
    require_supported(config, "model_type", TOWERS, "clip_vision_model")
    config.require("hidden_act", "quick_gelu", "gelu")
    config.require("num_channels", 3)
    processor = read_processor(folder)
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
        image_mean=processor.mean,
        image_std=processor.std,
        border=processor.border,
    )
