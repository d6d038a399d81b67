"""What a model description accepts, and that it survives JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from sdrpn.errors import BadInput
from sdrpn.families.llava.vision_spec import VisionSpec
from sdrpn.families.registry import spec_from_json
from sdrpn.method.spec import LlmSpec, ModelSpec, PromptSpec, RopeScaling, RpnSpec

VISION = VisionSpec(image_size_px=336, patch_size_px=14, width=1024, layers=24, heads=16, mlp_width=4096)
LLM = LlmSpec(32000, 4096, 32, 32, 32, 128, 11008, 4096)
SPEC = ModelSpec(VISION, LLM, tap_layer=15, rpn=RpnSpec(3))


def changed(spec: Any, **changes: Any) -> Any:
    return dataclasses.replace(spec, **changes)


ODD_SPECS = {
    "plain LLaVA": changed(SPEC, rpn=None),
    "one dot product over the width": changed(SPEC, rpn=RpnSpec(2, multi_head=False, loss="mse")),
    "shared key heads": changed(SPEC, llm=changed(LLM, kv_heads=8, head_dim=96)),
    "linear scaling": changed(SPEC, llm=changed(LLM, rope_scaling=RopeScaling("linear", 2.5))),
    "llama3 scaling": changed(SPEC, llm=changed(LLM, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))),
    "dynamic scaling": changed(
        SPEC, llm=changed(LLM, rope_scaling=RopeScaling("dynamic", 2.0, original_context=LLM.max_context))
    ),
    "yarn scaling": changed(
        SPEC, llm=changed(LLM, rope_scaling=RopeScaling("yarn", 4.0, amplitude=1.1, truncate=False))
    ),
    "sliding window": changed(SPEC, llm=changed(LLM, sliding_window=64)),
    "linear projector": changed(SPEC, vision=changed(VISION, projector_layers=1)),
    "tied": changed(SPEC, llm=changed(LLM, tied_embeddings=True, rope_theta=5e5, rms_norm_eps=1e-6)),
    "last hidden state": changed(SPEC, vision=changed(VISION, select_layer=-1, activation="gelu")),
    "hidden state counted from the front": changed(SPEC, vision=changed(VISION, select_layer=23)),
    "odd projector and colours": changed(
        SPEC, vision=changed(VISION, projector_width=77, image_mean=(0.5, 0.25, 1 / 3), image_std=(1.0, 0.1, 0.7))
    ),
    "no BOS": changed(SPEC, prompt=PromptSpec(bos_token_id=None, eos_token_ids=(), pad_token_id=0)),
    "three stop ids": changed(SPEC, prompt=PromptSpec(eos_token_ids=(2, 7, 32000))),
    "a template": changed(SPEC, prompt=PromptSpec("{% for m in messages %}ä\n{{ m }}{% endfor %}", "<img>", 31999)),
    "cut at both ends": changed(SPEC, tap_layer=31, rpn=RpnSpec(1)),
}


@pytest.mark.parametrize("spec", [SPEC, *ODD_SPECS.values()], ids=["LLaVA-1.5", *ODD_SPECS])
def test_a_spec_survives_the_round_trip(spec: ModelSpec) -> None:
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("entry", ["vision", "llm", "tap_layer", "rpn", "prompt"])
def test_a_missing_entry(entry: str) -> None:
    value = SPEC.to_json()
    del value[entry]
    with pytest.raises(BadInput, match=rf"^{entry} is missing$"):
        spec_from_json(value)


@pytest.mark.parametrize("part", ["vision", "llm", "rpn", "prompt"])
def test_an_unknown_entry(part: str) -> None:
    value = SPEC.to_json()
    value[part]["colour"] = "blue"
    with pytest.raises(BadInput, match=rf"^{part}.colour is unknown; expected"):
        spec_from_json(value)


@pytest.mark.parametrize("other", [None, 1, "text", []])
@pytest.mark.parametrize("part", ["vision", "llm", "prompt"])
def test_a_part_of_another_type(part: str, other: object) -> None:
    with pytest.raises(BadInput):
        spec_from_json({**SPEC.to_json(), part: other})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (VISION, {"image_size_px": 0}, "image_size_px is 0; expected a whole number of at least 1"),
        (VISION, {"layers": 2.0}, r"layers is 2\.0; expected a whole number of at least 1"),
        (VISION, {"heads": True}, "heads is True; expected a whole number"),
        (VISION, {"layers": 10_000_000}, "layers is 10000000; expected 1024 at most"),
        (VISION, {"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05; expected a number of at least 0"),
        (VISION, {"image_std": (0.0, 1.0, 1.0)}, r"image_std is \(0\.0, 1\.0, 1\.0\); expected three numbers above 0"),
        (VISION, {"image_std": (1.0, math.nan, 1.0)}, "image_std is .*nan"),
        (VISION, {"image_std": (1.0, 1.0)}, "image_std is .*; expected three numbers"),
        (VISION, {"image_mean": (0.5, 0.5, 122.0)}, "image_mean is .*; expected three numbers from 0 to 1"),
        (VISION, {"image_mean": "abc"}, "image_mean is abc; expected three numbers"),
        (VISION, {"heads": 3}, r"vision width \(1024\) is not a multiple of vision heads \(3\)"),
        (VISION, {"patch_size_px": 15}, r"image_size_px \(336\) is not a multiple of patch_size_px \(15\)"),
        (VISION, {"select_layer": -25}, "select_layer -25 of a vision tower with 24 layers .*; expected -24 to -1"),
        (VISION, {"select_layer": 25}, "select_layer 25 of a vision tower with 24 layers"),
        (VISION, {"select_layer": 0}, "select_layer 0 of a vision tower"),
        (LLM, {"vocabulary": -1}, "vocabulary is -1; expected a whole number of at least 1"),
        (LLM, {"layers": 10_000_000}, "layers is 10000000; expected 1024 at most"),
        (LLM, {"vocabulary": 10**30}, "vocabulary is 1000000000000000000000000000000; expected 16777216 at most"),
        (LLM, {"rope_theta": 0.0}, r"rope_theta is 0\.0; expected a number of at least 1e-06"),
        (LLM, {"rope_theta": math.inf}, "rope_theta is inf; expected a number"),
        (LLM, {"rope_theta": "10000"}, "rope_theta is 10000; expected a number"),
        (LLM, {"rms_norm_eps": math.nan}, "rms_norm_eps is nan; expected a number"),
        (LLM, {"max_context": "4096"}, "max_context is '4096'; expected a whole number"),
        (LLM, {"kv_heads": 5}, r"heads \(32\) is not a multiple of kv_heads \(5\)"),
        (LLM, {"head_dim": 127}, "head_dim is 127; rotary embeddings need an even one"),
        (RpnSpec(3), {"layers": 0}, "layers is 0; expected a whole number of at least 1"),
        (SPEC, {"tap_layer": 0}, "the tap lies after layer 0; expected 1 to 31"),
        (SPEC, {"tap_layer": 32}, "the tap lies after layer 32; expected 1 to 31"),
        (SPEC, {"rpn": RpnSpec(18)}, "an RPN of 18 layers after layer 15 needs 33 LLM layers to start from; .* 32"),
        (
            SPEC,
            {"rpn": RpnSpec(3, multi_head=False), "llm": changed(LLM, kv_heads=8)},
            "roi_multi_head=false multiplies whole queries and keys .*; got 8 and 32",
        ),
    ],
)
def test_what_cannot_be_is_refused(part: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        changed(part, **changes)


def test_what_follows_from_a_spec() -> None:
    assert (VISION.grid_side, VISION.image_tokens, VISION.used_layers) == (24, 576, 23)
    assert changed(VISION, select_layer=-1).used_layers == 24
    assert changed(VISION, select_layer=22).used_layers == 22
    assert VISION.pad_colour == (122, 116, 104)  # as the official code pads
    assert SPEC.tail_layers == 17
