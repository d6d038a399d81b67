"""From a config to the language model's description."""

from __future__ import annotations

from sdrpn.checkpoint.config_section import ConfigSection
from sdrpn.errors import BadCheckpoint
from sdrpn.spec import LlmSpec, RopeScaling

__all__ = ["llm_spec"]

_LLM_TYPES = ("llama", "vicuna", "llava_llama", "llava")  # "llava": the first LLaVA-1.5 files say so


def llm_spec(config: ConfigSection, *, tied_by_default: bool = False) -> LlmSpec:
    """The decoder that `config` describes. Raises BadCheckpoint for what is not supported."""
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
