"""From a checkpoint's JSON files and the names of its tensors to a ModelSpec, whichever of the three kinds it is.

Entries of the method lie at the top of config.json; Qwen3-VL's may be in `text_config` as well. Defaults are those of
the classes that wrote the files. What is not supported is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrpn.checkpoint.config_section import ConfigSection, read_config, read_optional_config
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.qwen.names import has_gate, has_rpn, is_sd_rpn
from sdrpn.families.qwen.prompt import read_prompt
from sdrpn.families.qwen.pruning import PRUNED_ABOVE_TOKENS
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision
from sdrpn.method.spec import AskedScheme, LlmSpec, ModelSpec, RpnSpec, Scheme, Vision

__all__ = ["family_name", "qwen_spec", "recognised_scheme", "require_deepstack_below_tap"]

# Entries that Q-Zoom's code writes, and SD-RPN's does not know.
_QZOOM_ENTRIES = ("enable_high_res", "reuse_src_pos", "high_res_K", "high_res_T", "high_res_thresh")
_TYPES = {"qwen2_5_vl": "qwen2.5-vl", "qwen3_vl": "qwen3-vl"}
_CLIP_MEAN, _CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_HALVES = [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class _Defaults:
    """What a family's configs omit where it is the class's own value."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    max_context: int
    rms_norm_eps: float
    rope_theta: float
    sections: list[int]
    vision_width: int
    vision_layers: int
    vision_mlp: int
    patch: int
    activation: str
    pixels: tuple[int, int]  # least and most of a picture
    mean: list[float]
    std: list[float]


_DEFAULTS = {
    "qwen2.5-vl": _Defaults(
        vocabulary=152064,
        width=8192,
        layers=80,
        heads=64,
        kv_heads=8,
        mlp_width=29568,
        max_context=32768,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        sections=[16, 24, 24],
        vision_width=3584,
        vision_layers=32,
        vision_mlp=3420,
        patch=14,
        activation="silu",
        pixels=(4 * 28**2, 16384 * 28**2),
        mean=_CLIP_MEAN,
        std=_CLIP_STD,
    ),
    "qwen3-vl": _Defaults(
        vocabulary=151936,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=32,
        mlp_width=22016,
        max_context=128000,
        rms_norm_eps=1e-6,
        rope_theta=5e6,
        sections=[24, 20, 20],
        vision_width=1152,
        vision_layers=27,
        vision_mlp=4304,
        patch=16,
        activation="gelu_pytorch_tanh",
        pixels=(64 * 32**2, 16384 * 32**2),
        mean=_HALVES,
        std=_HALVES,
    ),
}


def family_name(config: Mapping[str, Any]) -> str | None:
    """The family of a model that a config.json describes, of these two."""
    kind = config.get("model_type")
    return _TYPES.get(kind) if isinstance(kind, str) else None


def recognised_scheme(config: Mapping[str, Any], names: Set[str], asked: AskedScheme = "auto") -> Scheme | None:
    """Whose region proposal network a checkpoint has, from its config and the names of its tensors; None: nobody's.

    Raises BadInput for SD-RPN's scheme on Qwen3-VL, which has none, and for Q-Zoom's with tensors that only SD-RPN has.
    """
    family = family_name(config)
    if asked == "sd-rpn" and family == "qwen3-vl":
        raise BadInput("SD-RPN has no Qwen3-VL; expected the scheme q-zoom, or auto")
    if not has_rpn(names):
        return None
    if asked == "q-zoom" and is_sd_rpn(names):
        raise BadInput(
            "the region proposal network was saved by SD-RPN, as the names of its tensors show; expected the scheme "
            "sd-rpn, or auto; got q-zoom",
            options=("scheme",),
        )
    if asked != "auto":
        return asked
    if family == "qwen3-vl" or has_gate(names):
        return "q-zoom"
    if is_sd_rpn(names) or not any(entry in config for entry in _QZOOM_ENTRIES):
        return "sd-rpn"
    return "q-zoom"


def qwen_spec(folder: Path, names: Set[str], scheme: AskedScheme = "auto") -> ModelSpec:
    """The spec of the checkpoint in `folder`, which has tensors of these names.

    Raises BadCheckpoint for anything missing, malformed or not supported.
    """
    config = read_config(folder / "config.json")
    family = family_name(config.values)
    if family is None:
        raise config.wrong("model_type", config.get("model_type"), " or ".join(f'"{kind}"' for kind in _TYPES))
    if config.get("quantization_config") is not None:
        raise BadCheckpoint(
            f"{config.where}: quantization_config says that the weights are quantised, which is not supported; use the "
            "checkpoint from before that, and quantise it in the export",
            options=("precision int8", "precision int4"),
        )
    with config.naming():
        text = config.section("text_config") if "text_config" in config.values else config
        defaults = _DEFAULTS[family]
        llm = _llm(config, text, family, defaults)
        rpn, tap = _rpn(config, text, names, scheme, llm)
        vision = _vision(config, folder, family, defaults, llm)
        require_deepstack_below_tap(vision, tap, config.where)
        return ModelSpec(
            vision=vision,
            llm=llm,
            tap_layer=tap,
            rpn=rpn,
            prompt=read_prompt(text, config, folder, family),
        )


def require_deepstack_below_tap(vision: Vision, tap: int, where: str) -> None:
    """Raise BadCheckpoint for a tap below layers that features of the vision tower are added to."""
    if isinstance(vision, Qwen3Vision) and len(vision.deepstack_layers) > tap:
        raise BadCheckpoint(
            f"{where}: the tap lies after layer {tap}, and the vision tower has features for the first "
            f"{len(vision.deepstack_layers)} layers; expected a tap behind them"
        )


# The language model -------------------------------------------------------------------------------------------------


def _llm(config: ConfigSection, text: ConfigSection, family: str, defaults: _Defaults) -> LlmSpec:
    text.require("hidden_act", "silu")
    if family == "qwen3-vl":
        text.require("attention_bias", False)
    text.require("use_sliding_window", False)
    width, heads = text.whole("hidden_size", defaults.width), text.whole("num_attention_heads", defaults.heads)
    head_dim = text.whole("head_dim", 128 if family == "qwen3-vl" else width // max(heads, 1))
    kv_heads = heads if "num_key_value_heads" in text.values else defaults.kv_heads  # null: as many as query heads
    theta, sections = _rope(text, family, defaults)
    return LlmSpec(
        vocabulary=text.whole("vocab_size", defaults.vocabulary),
        width=width,
        layers=text.whole("num_hidden_layers", defaults.layers),
        heads=heads,
        kv_heads=text.whole("num_key_value_heads", kv_heads),
        head_dim=head_dim,
        mlp_width=text.whole("intermediate_size", defaults.mlp_width),
        max_context=text.whole("max_position_embeddings", defaults.max_context),
        rms_norm_eps=text.number("rms_norm_eps", defaults.rms_norm_eps),
        rope_theta=theta,
        tied_embeddings=config.flag("tie_word_embeddings") or text.flag("tie_word_embeddings"),
        attention_bias=family == "qwen2.5-vl",
        qk_norm=family == "qwen3-vl",
        rope_sections=sections,
    )


def _rope(text: ConfigSection, family: str, defaults: _Defaults) -> tuple[float, tuple[int, ...]]:
    """Base and sections; transformers 5 writes rope_parameters, transformers 4 rope_theta and rope_scaling."""
    rope = text.section("rope_parameters", text.get("rope_scaling"))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):  # fine-tunes of transformers 4 save "mrope" as "default"
        raise BadCheckpoint(f"{rope.where}: rope type {kind!r} is not supported; expected default or mrope")
    if family == "qwen3-vl":
        rope.require("mrope_interleaved", True)
    sections = rope.get("mrope_section", defaults.sections)
    if not isinstance(sections, list) or not all(type(pairs) is int for pairs in sections) or len(sections) != 3:
        raise rope.wrong("mrope_section", sections, "three whole numbers")
    return rope.number("rope_theta", text.number("rope_theta", defaults.rope_theta)), tuple(sections)


# The region proposal network and the gate ---------------------------------------------------------------------------


def _rpn(
    config: ConfigSection, text: ConfigSection, names: Set[str], asked: AskedScheme, llm: LlmSpec
) -> tuple[RpnSpec | None, int]:
    """The RPN and the tap; a plain model is cut in the middle."""
    entries = ConfigSection({**text.values, **config.values}, config.where)
    scheme = recognised_scheme(config.values, names, asked)
    gated = entries.flag("enable_high_res") and scheme != "sd-rpn"
    if scheme is None:
        if has_gate(names):
            raise BadCheckpoint(
                f"{config.where}: the weights hold a gate and no region proposal network (twig_layers); a gate alone "
                "decides nothing: use a checkpoint that has both"
            )
        if entries.flag("enable_twig"):
            raise BadCheckpoint(
                f"{config.where}: enable_twig is true, and the weights hold no twig_layers; use the weights that "
                "belong to this config, or set it to false"
            )
        return None, max(1, llm.layers // 2)
    entries.require("roi_source", "qk")
    entries.require("roi_loss", "bce", "focal", "mse")
    if scheme == "sd-rpn":
        entries.require("roi_multi_head", True)  # else whole queries and keys, which differ in number of heads
    tap, layers = entries.whole("twig_K"), entries.whole("twig_T")
    if gated:
        # The gate runs on the tap: with another K the official code skips the layers between.
        entries.require("high_res_K", tap)
    rpn = RpnSpec(
        layers=layers,
        loss=entries.get("roi_loss", "bce"),
        scheme=scheme,
        rotary=True,
        outer_norm=False,
        sink_query=family_name(config.values) == "qwen3-vl",
        reuse_positions=entries.flag("reuse_src_pos") and scheme == "q-zoom",
        gate_layers=entries.whole("high_res_T", layers) if gated else 0,
        prune_above=PRUNED_ABOVE_TOKENS if scheme == "sd-rpn" else 0,
    )
    return rpn, tap


# The vision tower and the processor ---------------------------------------------------------------------------------


def _vision(
    config: ConfigSection, folder: Path, family: str, defaults: _Defaults, llm: LlmSpec
) -> Qwen25Vision | Qwen3Vision:
    section = config.section("vision_config")
    section.require("hidden_act", defaults.activation)
    for key in ("in_channels", "in_chans"):
        section.require(key, 3)
    if section.whole("out_hidden_size", llm.width) != llm.width:
        raise BadCheckpoint(
            f"{section.where}: out_hidden_size is {section.get('out_hidden_size')}; expected {llm.width}, the width of "
            "the language model"
        )
    processor = _processor(folder)
    common: dict[str, Any] = {
        "patch_size_px": section.whole("patch_size", defaults.patch),
        "width": section.whole("hidden_size", defaults.vision_width),
        "layers": section.whole("depth", defaults.vision_layers),
        "heads": section.whole("num_heads", 16),
        "mlp_width": section.whole("intermediate_size", defaults.vision_mlp),
        "merge": section.whole("spatial_merge_size", 2),
        "frames": section.whole("temporal_patch_size", 2),
        "image_mean": _channels(processor, "image_mean", defaults.mean),
        "image_std": _channels(processor, "image_std", defaults.std),
    }
    for key, name in (("patch_size", "patch_size_px"), ("merge_size", "merge"), ("temporal_patch_size", "frames")):
        processor.require(key, common[name])
    common["least_pixels"], common["most_pixels"] = _pixels(processor, config, defaults)
    if family == "qwen2.5-vl":
        full = _layers(section, "fullatt_block_indexes", [7, 15, 23, 31])
        return Qwen25Vision(**common, window_px=section.whole("window_size", 112), full_layers=full)
    entries = section.whole("num_position_embeddings", 2304)
    side = math.isqrt(max(entries, 0))
    if side * side != entries:
        raise section.wrong("num_position_embeddings", entries, "the number of entries of a square table")
    deep = _layers(section, "deepstack_visual_indexes", [8, 16, 24])
    return Qwen3Vision(**common, position_side=side, deepstack_layers=deep)


def _processor(folder: Path) -> ConfigSection:
    """How pictures are prepared; nothing where the folder has no processor: then the family's own values hold."""
    found = read_optional_config(folder / "preprocessor_config.json")
    if not found.values:
        found = read_optional_config(folder / "processor_config.json").section("image_processor")
    found.require("resample", 3)  # bicubic
    for key in ("do_resize", "do_rescale", "do_normalize"):
        found.require(key, True)
    factor = found.number("rescale_factor", 1 / 255)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise found.wrong("rescale_factor", factor, "1/255")
    return found


def _pixels(processor: ConfigSection, config: ConfigSection, defaults: _Defaults) -> tuple[int, int]:
    """Least and most pixels of a picture: the processor's, else those that Q-Zoom saves in config.json."""
    size = processor.section("size")
    found = []
    for key, edge, default in (
        ("min_pixels", "shortest_edge", defaults.pixels[0]),
        ("max_pixels", "longest_edge", defaults.pixels[1]),
    ):
        found.append(processor.whole(key, size.whole(edge, config.whole(key, default))))
    return found[0], found[1]


def _layers(section: ConfigSection, key: str, default: Sequence[int]) -> tuple[int, ...]:
    value = section.get(key, list(default))
    if not isinstance(value, list) or not all(type(layer) is int for layer in value):
        raise section.wrong(key, value, "a list of layers")
    return tuple(value)


def _channels(section: ConfigSection, key: str, default: Sequence[float]) -> tuple[float, float, float]:
    value = section.get(key, list(default))
    if not isinstance(value, list) or len(value) != 3 or not all(type(number) in (int, float) for number in value):
        raise section.wrong(key, value, "three numbers")
    red, green, blue = (float(number) for number in value)
    return red, green, blue
