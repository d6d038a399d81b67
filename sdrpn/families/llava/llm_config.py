"""From a config to the spec of the language model: LLaMA, or Mistral, which is LLaMA with other defaults and,
where the config says so, a sliding window."""

from __future__ import annotations

import math

from sdrpn.checkpoint.config_section import ConfigSection
from sdrpn.errors import BadCheckpoint
from sdrpn.families.llava.unsupported import TEXT_MODELS, require_supported
from sdrpn.method.spec import LlmSpec, RopeScaling

__all__ = ["llm_spec"]

# "llava" is in the first LLaVA-1.5 files; "share4v" is ShareGPT4V, the same network under its own name.
_LLAMA_TYPES = ("llama", "vicuna", "llava_llama", "llava", "share4v")
_MISTRAL_TYPES = ("mistral", "llava_mistral")
# Defaults that the configs of each omit (transformers' LlamaConfig and MistralConfig).
_LLAMA = {"intermediate_size": 11008, "max_position_embeddings": 2048}
_MISTRAL = {"intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8}
_MISTRAL_WINDOW = 4096  # where the config says nothing; null means none


def llm_spec(config: ConfigSection, *, tied: bool = False) -> LlmSpec:
    """The decoder that `config` describes. Raises BadCheckpoint for what is not supported.

    `tied`: the enclosing config says that the head is the embedding table.
    """
    require_supported(config, "model_type", TEXT_MODELS, *_LLAMA_TYPES, *_MISTRAL_TYPES)
    config.require("hidden_act", "silu")
    config.require("attention_bias", False)
    config.require("mlp_bias", False)
    defaults = _MISTRAL if config.get("model_type") in _MISTRAL_TYPES else _LLAMA
    width, heads = config.whole("hidden_size", 4096), config.whole("num_attention_heads", 32)
    max_context = config.whole("max_position_embeddings", defaults["max_position_embeddings"])
    theta, scaling = _rope(config, max_context)
    return LlmSpec(
        vocabulary=config.whole("vocab_size", 32000),
        width=width,
        layers=config.whole("num_hidden_layers", 32),
        heads=heads,
        kv_heads=_key_heads(config, defaults.get("num_key_value_heads", heads), heads),
        head_dim=config.whole("head_dim", width // max(heads, 1)),
        mlp_width=config.whole("intermediate_size", defaults["intermediate_size"]),
        max_context=max_context,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=config.flag("tie_word_embeddings") or tied,
        sliding_window=_sliding_window(config),
    )


def _key_heads(config: ConfigSection, when_absent: int, when_null: int) -> int:
    """The number of key heads: `when_absent` without the entry; null means as many as query heads."""
    return config.whole("num_key_value_heads", when_null if "num_key_value_heads" in config.values else when_absent)


def _sliding_window(config: ConfigSection) -> int | None:
    """The sliding window. LLaMA has none, whatever its config says; Mistral has one unless the config says null."""
    if config.get("model_type") not in _MISTRAL_TYPES:
        return None
    if config.values.get("sliding_window", _MISTRAL_WINDOW) is None:
        return None
    return config.whole("sliding_window", _MISTRAL_WINDOW)


def _rope(config: ConfigSection, max_context: int) -> tuple[float, RopeScaling | None]:
    """The RoPE base and scaling. transformers 5 writes rope_parameters; transformers 4 rope_theta and rope_scaling."""
    rope = config.section("rope_parameters", config.get("rope_scaling"))
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    for section in (config, rope):
        section.require("partial_rotary_factor", 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", rope.number("factor", 1.0))
    if kind == "dynamic":
        return theta, RopeScaling("dynamic", rope.number("factor", 1.0), original_context=max_context)
    original = config.whole(
        "original_max_position_embeddings", rope.whole("original_max_position_embeddings", max_context)
    )
    if kind == "llama3":
        return theta, RopeScaling(
            "llama3",
            rope.number("factor", 8.0),
            low_freq_factor=rope.number("low_freq_factor", 1.0),
            high_freq_factor=rope.number("high_freq_factor", 4.0),
            original_context=original,
        )
    if kind == "yarn":
        return theta, _yarn(rope, max_context, original)
    raise BadCheckpoint(
        f"{rope.where}: rope type {kind!r} is not supported; expected default, linear, dynamic, yarn or llama3"
    )


def _yarn(rope: ConfigSection, max_context: int, original: int) -> RopeScaling:
    factor = rope.number("factor", max_context / max(original, 1))
    return RopeScaling(
        "yarn",
        factor,
        original_context=original,
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,  # 0 counts as absent, as for transformers
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        amplitude=_yarn_amplitude(rope, factor),
        truncate=rope.flag("truncate", True),
    )


def _yarn_amplitude(rope: ConfigSection, factor: float) -> float:
    """The config's value, else the paper's 0.1 ln(factor) + 1, which `mscale` and `mscale_all_dim` may weight."""

    def amplitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    above, below = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    usual = amplitude(above) / amplitude(below) if above and below else amplitude(1.0)
    return rope.number("attention_factor", usual)
