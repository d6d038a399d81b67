"""Rotary tables equal transformers' rotary embedding."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from sdrpn.export.rope import rope_reader, rope_weights
from sdrpn.method.rope import inverse_frequencies
from sdrpn.method.spec import LlmSpec, RopeScaling
from tests.tolerances import ROPE_FREQUENCY_RELATIVE, ROPE_TABLE_ABS

LLM = LlmSpec(96, 64, 4, 4, 4, 16, 96, 4096)
CASES: dict[str, LlmSpec] = {
    "LLaMA": LLM,
    "wide heads": dataclasses.replace(LLM, head_dim=128),
    "two channels": dataclasses.replace(LLM, head_dim=2),
    "another theta": dataclasses.replace(LLM, rope_theta=5e5),
    "linear": dataclasses.replace(LLM, rope_scaling=RopeScaling("linear", 4.0)),
    "llama3": dataclasses.replace(LLM, head_dim=128, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0)),
    "llama3, other bands": dataclasses.replace(
        LLM, head_dim=64, rope_scaling=RopeScaling("llama3", 32.0, 2.0, 9.0, original_context=512)
    ),
    "dynamic": dataclasses.replace(LLM, rope_scaling=RopeScaling("dynamic", 8.0, original_context=4096)),
    "yarn": dataclasses.replace(
        LLM, head_dim=128, rope_scaling=RopeScaling("yarn", 4.0, original_context=1024, amplitude=0.1 * math.log(4) + 1)
    ),
    "yarn, other bands, not rounded": dataclasses.replace(
        LLM,
        head_dim=64,
        rope_theta=5e5,
        rope_scaling=RopeScaling(
            "yarn", 16.0, original_context=256, beta_fast=8.0, beta_slow=3.0, amplitude=0.7, truncate=False
        ),
    ),
    "yarn, few channels": dataclasses.replace(
        LLM, head_dim=4, rope_scaling=RopeScaling("yarn", 2.0, original_context=32, amplitude=1.0)
    ),
}


def official(llm: LlmSpec, positions: int) -> tuple[Any, Any, Any]:
    """cos, sin (positions, head_dim/2) and inverse frequencies of transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    scaling = llm.rope_scaling
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": llm.rope_theta}
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    if scaling is not None and scaling.kind == "yarn":
        rope |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.amplitude,
            "truncate": scaling.truncate,
            "original_max_position_embeddings": scaling.original_context,
        }
    config = LlamaConfig(
        hidden_size=llm.width,
        num_attention_heads=llm.heads,
        head_dim=llm.head_dim,
        max_position_embeddings=llm.max_context,
        rope_parameters=rope,
    )
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1, positions, 1), torch.arange(positions)[None])
    half = llm.head_dim // 2
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy(), rotary.inv_freq.numpy()


@pytest.mark.parametrize("name", CASES)
def test_tables_equal_those_of_transformers(name: str) -> None:
    llm, positions = CASES[name], 4096
    cos, sin, frequencies = official(llm, positions)
    found = inverse_frequencies(llm)
    assert found.dtype == np.float32
    worst = np.abs(found / frequencies - 1).max()
    assert worst <= ROPE_FREQUENCY_RELATIVE, f"frequencies differ by {worst:.2e} of their value"
    reader = rope_reader(llm, positions)
    for table, expected in (("rope.cos", cos), ("rope.sin", sin)):
        difference = np.abs(reader.read(table) - expected).max()
        assert difference <= ROPE_TABLE_ABS, f"{table} differs by {difference:.2e}"


def test_tables_have_the_declared_shape_and_type() -> None:
    reader = rope_reader(LLM, 300)
    for weight in rope_weights(LLM, 300):
        assert weight.shape == (300, 8)
        assert reader.read(weight.name).shape == weight.shape
        assert reader.read(weight.name).dtype == np.float32
