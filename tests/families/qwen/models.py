"""Small specs of the three kinds, and the bare models, for random checkpoints."""

from __future__ import annotations

import dataclasses

from sdrpn.families.qwen.prompt import DEFAULT_TEMPLATES
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RpnSpec
from tests.families.qwen.official import vision_3, vision_25

LLM_25 = LlmSpec(
    vocabulary=320,
    width=64,
    layers=6,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=96,
    max_context=2048,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    attention_bias=True,
    rope_sections=(2, 3, 3),
)
LLM_3 = dataclasses.replace(LLM_25, head_dim=24, attention_bias=False, qk_norm=True, rope_sections=(4, 4, 4))
PROMPT = PromptSpec(
    image_token="<|image_pad|>",
    image_token_id=304,
    bos_token_id=300,
    eos_token_ids=(301,),
)
RPN = RpnSpec(layers=2, scheme="q-zoom", rotary=True, outer_norm=False)
GATED = dataclasses.replace(RPN, gate_layers=2)
SDRPN = dataclasses.replace(RPN, scheme="sd-rpn", prune_above=1024)
SINKS = dataclasses.replace(GATED, sink_query=True, reuse_positions=True)


def _prompt(family: str) -> PromptSpec:
    return dataclasses.replace(PROMPT, template=DEFAULT_TEMPLATES[family])


def spec_25(rpn: RpnSpec | None = GATED, *, tokens: tuple[int, int] = (4, 144), tied: bool = False) -> ModelSpec:
    """A Qwen2.5-VL with a head of its own, or a tied one."""
    return ModelSpec(
        vision_25(*tokens), dataclasses.replace(LLM_25, tied_embeddings=tied), 3, rpn, _prompt("qwen2.5-vl")
    )


def spec_3(rpn: RpnSpec | None = SINKS, *, tokens: tuple[int, int] = (4, 144), tied: bool = False) -> ModelSpec:
    """A Qwen3-VL."""
    llm = dataclasses.replace(LLM_3, tied_embeddings=tied)
    return ModelSpec(vision_3(*tokens), llm, 3, rpn, _prompt("qwen3-vl"))


KINDS = {
    "sd-rpn": spec_25(SDRPN),
    "q-zoom": spec_25(RPN),
    "q-zoom-gate": spec_25(GATED, tied=True),
    "q-zoom-3": spec_3(),
    "bare": spec_25(None),
    "bare-3": spec_3(None, tied=True),
}
