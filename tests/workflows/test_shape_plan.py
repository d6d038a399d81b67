"""Published models, planned by their sizes: sums by hand, every target, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sdrpn.bundle.memory import device_needs
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.engines import read_targets
from sdrpn.errors import BadInput
from sdrpn.families.qwen.vision_spec import qwen_vision_of, with_image_tokens
from sdrpn.families.registry import published_shapes, spec_from_json
from sdrpn.workflows.memory_plan import PlanRequest, plan, plan_memory
from sdrpn.workflows.memory_plan_text import memory_text
from sdrpn.workflows.shape_plan import ShapeRequest, is_shape, plan_shape
from tests.families.qwen.models import KINDS

# Billions of parameters without region proposal network and gate; with an LM head of its own, also where it is tied.
SIZES = {
    "llava-1.5-7b-sd-rpn": 7.06,
    "llava-1.5-13b-sd-rpn": 13.4,
    "qwen2.5-vl-3b-sd-rpn": 4.07,
    "qwen2.5-vl-7b-sd-rpn": 8.29,
    "qwen2.5-vl-3b-q-zoom": 4.07,
    "qwen2.5-vl-7b-q-zoom": 8.29,
    "qwen3-vl-4b-q-zoom": 4.83,
    "qwen3-vl-8b-q-zoom": 8.77,
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name: str) -> None:
    spec = published_shapes()[name]
    assert spec_from_json(spec.to_json()) == spec
    count = 0
    for tensor, shape in tensor_shapes(spec).items():
        if tensor.split(".")[0] in ("rpn", "gate"):
            continue
        values = 1
        for side in shape:
            values *= side
        count += values
    assert count / 1e9 == pytest.approx(SIZES[name], rel=0.01)


def test_every_published_model_is_there() -> None:
    assert set(published_shapes()) == set(SIZES)


def test_what_is_assumed_is_said() -> None:
    """Every Qwen model has some; no K is published for the RPN of Qwen3-VL-8B."""
    for name, spec in published_shapes().items():
        found = plan_shape(ShapeRequest(name, "rtx-4090", "fp16"))
        assert bool(found.assumed) == (spec.vision.family != "llava")
        assert any("a gate" in text for text in found.assumed) == bool(spec.rpn and spec.rpn.gate_layers)
        assert any("as published for 4B" in text for text in found.assumed) == ("8b" in name)
        assert found.to_json()["assumed"] == found.assumed
        assert [part for part in memory_text(found) if isinstance(part, str)] == [
            f"assumed: {text}" for text in found.assumed
        ]


def test_caches_of_gate_and_rpn_by_hand() -> None:
    """6 layers, a layer of the RPN below its last, its keys, two layers of the gate: 17 of 2 heads of 24 channels."""
    spec = KINDS["q-zoom-3"]
    row = (2 * 6 + 2 * 1 + 1 + 2 * 2) * 2 * 24 * 2 + 64 * 4
    assert device_needs(spec, 0, context=100, batch=3).caches_bytes == 3 * 100 * row
    coded = 2 * 6 * 2 * (24 + 2) + (2 * 1 + 1 + 2 * 2) * 2 * 24 * 2 + 64 * 4
    assert device_needs(spec, 0, context=100, kv_cache="int8").caches_bytes == 100 * coded


def test_a_picture_of_many_tokens_takes_more_than_a_prefill() -> None:
    """The tower's rows are four times the image tokens; the LLM's prefill is short."""
    spec = KINDS["q-zoom"]
    few, many = (
        dataclasses.replace(spec, vision=with_image_tokens(qwen_vision_of(spec), 4, tokens)) for tokens in (16, 16000)
    )
    small, large = (device_needs(each, 0, context=64) for each in (few, many))
    width, mlp = 32, 64
    rows = many.vision.image_tokens * 4
    assert large.activations_bytes == (8 << 20) + rows * (10 * width + 2 * mlp) * 4
    assert small.activations_bytes < large.activations_bytes
    assert large.images_bytes > small.images_bytes


def test_features_are_counted_with_a_picture_and_with_rows() -> None:
    deep, flat = KINDS["q-zoom-3"], KINDS["q-zoom"]
    assert device_needs(deep, 0, context=2048).activations_bytes > device_needs(flat, 0, context=2048).activations_bytes


def test_all_targets() -> None:
    found = plan_shape(ShapeRequest("qwen3-vl-4b-q-zoom", precision="int4"))
    assert [device.target for device in found.devices] == list(read_targets())
    by_name = {device.target: device for device in found.devices}
    orin, unknown = by_name["jetson-agx-orin-jp72"], by_name["jetson-agx-orin-jp62"]
    assert orin.fits
    assert orin.needs.attention_bytes == 0
    assert unknown.needs.attention_bytes > 0  # what JetPack 6's library fuses was not seen
    assert orin.needs.weights_bytes == unknown.needs.weights_bytes
    # 4 bits and a scale of 16 bits for every 32 values, but what stays in 16 bits: head, RPN, gate and vision tower.
    assert 4.3e9 < orin.needs.weights_bytes < 5.0e9
    coded = plan_shape(ShapeRequest("qwen3-vl-4b-q-zoom", "jetson-agx-orin-jp72", "int4", kv_cache="int8"))
    (device,) = coded.devices
    assert device.needs.caches_bytes < orin.needs.caches_bytes
    assert device.dialect == "primitive"


def test_caches_in_8_bits_on_every_target() -> None:
    """Their dialect has no nvfp4, which is the best of some targets otherwise."""
    usual = plan_shape(ShapeRequest("qwen3-vl-4b-q-zoom")).devices
    coded = plan_shape(ShapeRequest("qwen3-vl-4b-q-zoom", kv_cache="int8")).devices
    assert {(device.precision, other.precision) for device, other in zip(usual, coded, strict=True)} == {
        ("int4", "int4"),
        ("fp8", "fp8"),
        ("nvfp4", "fp8"),
    }
    assert {device.dialect for device in coded} == {"primitive"}
    with pytest.raises(BadInput, match=r"caches in int8 do not go with precision nvfp4: .*; use precision fp8"):
        plan_shape(ShapeRequest("qwen3-vl-4b-q-zoom", "rtx-5090", "nvfp4", kv_cache="int8"))


def test_image_tokens_and_context() -> None:
    request = ShapeRequest("qwen2.5-vl-7b-q-zoom", "rtx-4090", "fp16", image_tokens=(512, 4096))
    found = plan_shape(request)
    assert found.image_tokens == 4096
    assert found.devices[0].context == 2 * 4096 + 1
    shorter = plan_shape(dataclasses.replace(request, context=2048))
    assert shorter.devices[0].needs.total_bytes < found.devices[0].needs.total_bytes
    with pytest.raises(BadInput, match="a context of 40000 is above the model's 32768"):
        plan_shape(dataclasses.replace(request, context=40000))


def test_a_folder_is_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_shape("qwen3-vl-4b-q-zoom")
    Path("qwen3-vl-4b-q-zoom").mkdir()
    assert not is_shape("qwen3-vl-4b-q-zoom")
    assert plan_memory("demo").bundle == plan(PlanRequest("demo")).to_json()["bundle"]
