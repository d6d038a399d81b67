"""Rotary tables equal transformers' rotary embedding."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from sdrpn.export import rope
from sdrpn.export.rope import exported_frequencies
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
    cos, sin, inverse = official(llm, positions)
    found = exported_frequencies(llm)
    np.testing.assert_array_equal(np.array(found.inverse, np.float32), inverse)
    for what, table, expected in zip(("cos", "sin"), found.tables(np.arange(positions)), (cos, sin), strict=True):
        assert table.shape == expected.shape
        difference = np.abs(table - expected).max()
        assert difference <= ROPE_TABLE_ABS, f"{what} differs by {difference:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_without_torch_frequencies_are_within_one_unit_in_the_last_place(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = exported_frequencies(CASES[name])
    monkeypatch.setattr(rope, "installed_version", lambda name: None)
    found = exported_frequencies(CASES[name])
    assert found.amplitude == exact.amplitude
    np.testing.assert_allclose(found.inverse, exact.inverse, rtol=ROPE_FREQUENCY_RELATIVE, atol=0)
