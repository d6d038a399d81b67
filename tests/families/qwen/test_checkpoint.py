"""The three kinds of checkpoint, their layouts, and what is wrong with them by the name of the tensor or the entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.checkpoint import open_checkpoint
from sdrpn.checkpoint.tensor_shapes import tensor_shapes
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.qwen.checkpoint import open_qwen
from sdrpn.families.qwen.config import recognised_scheme
from sdrpn.families.qwen.names import NameTable
from sdrpn.families.qwen.vision_spec import Qwen3Vision, Qwen25Vision
from tests.families.qwen.checkpoint import CONFIG_3, CONFIG_25, METHOD, NEW_25, QZOOM, config_of, write_qwen
from tests.families.qwen.official import WHOLE

OFFICIAL = [
    pytest.param(name, marks=pytest.mark.skipif(not WHOLE.is_dir(), reason="the official models are not there"))
    for name in ("q25_K3T3", "q3_K3T3")
]


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_models_are_recognised_and_whole(name: str) -> None:
    with open_qwen(WHOLE / name) as weights:
        spec = weights.spec
        assert spec.rpn is not None
        assert (spec.rpn.scheme, spec.tap_layer, spec.rpn.layers, spec.rpn.gate_layers) == ("q-zoom", 3, 3, 3)
        assert spec.rpn.sink_query == (name == "q3_K3T3")
        assert (spec.llm.attention_bias, spec.llm.qk_norm) == ((False, True) if "q3" in name else (True, False))
        assert spec.prompt.image_token_id == 304
        assert spec.prompt.eos_token_ids == (301,)
        if name == "q25_K3T3":
            assert isinstance(spec.vision, Qwen25Vision)
            assert (spec.vision.full_layers, spec.vision.window_cells, spec.vision.most_pixels) == (
                (1, 3),
                4,
                144 * 784,
            )
        else:
            assert isinstance(spec.vision, Qwen3Vision)
            assert (spec.vision.position_side, spec.vision.deepstack_layers) == (8, (1, 2))
            assert spec.llm.head_dim == 24
        for tensor in weights.names:
            assert weights.read(tensor).shape == weights.shape(tensor)


@pytest.mark.parametrize("name", OFFICIAL)
def test_nothing_of_the_official_models_is_left_over(name: str) -> None:
    """But for what the last layer of the RPN never uses."""
    with open_qwen(WHOLE / name) as weights:
        places = {place.file_name for place in weights._places.values()}
        (source,) = {place.source for place in weights._places.values()}
        unused = {each for each in source.tensors.names if each not in places}
    ends = ("v_proj.weight", "v_proj.bias", "o_proj.weight", "gate_proj.weight", "up_proj.weight", "down_proj.weight")
    assert all(
        "twig_layers.2." in each and each.endswith((*ends, "post_attention_layernorm.weight")) for each in unused
    )


def test_names_of_each_release(tmp_path: Path) -> None:
    with open_qwen(write_qwen(tmp_path / "old", config_of(CONFIG_25, **QZOOM))) as old:
        assert old.layout == "qwen2.5-vl (model.*)"
    with open_qwen(write_qwen(tmp_path / "new", config_of(CONFIG_25, **QZOOM), NEW_25)) as new:
        assert new.layout == "qwen2.5-vl (model.language_model.*)"
        assert new.spec == old.spec
        assert new.names == old.names
    mixed = NameTable("language_model.model.", "visual.", "language_model.lm_head.weight", "qwen2.5-vl")
    with open_qwen(write_qwen(tmp_path / "mixed", config_of(CONFIG_25), mixed)) as bare:
        assert bare.spec.rpn is None
        assert bare.shape("llm.head.weight") == (320, 64)


def test_configs_of_transformers_5(tmp_path: Path) -> None:
    """The text's entries in a section of their own, and base and sections of the rotary embedding in one."""
    inner = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    others = ("rms_norm_eps", "max_position_embeddings", "vocab_size", "use_sliding_window", "eos_token_id")
    text: dict[str, Any] = {key: CONFIG_25[key] for key in (*inner, *others)}
    text["rope_parameters"] = {"mrope_section": [2, 3, 3], "rope_type": "default", "rope_theta": 10000.0}
    config = {
        "model_type": "qwen2_5_vl",
        "text_config": text,
        "vision_config": CONFIG_25["vision_config"],
        "image_token_id": 304,
    }
    with (
        open_qwen(write_qwen(tmp_path / "5", config, NEW_25)) as new,
        open_qwen(write_qwen(tmp_path / "4", config_of(CONFIG_25))) as old,
    ):
        assert new.spec.llm == old.spec.llm
        assert new.spec.vision == old.spec.vision


def test_a_tied_head_is_the_embedding_table(tmp_path: Path) -> None:
    config = config_of(CONFIG_25, tie_word_embeddings=True)
    with open_qwen(write_qwen(tmp_path, config, keep=lambda name: name != "lm_head.weight")) as weights:
        assert weights.spec.llm.tied_embeddings
        assert np.array_equal(weights.read("llm.head.weight"), weights.read("llm.embed.weight"))


RPN = frozenset({"model.twig_layers.0.mlp.up_proj.weight"})
GATE = RPN | {"model.high_res_head.weight"}


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        ({"model_type": "qwen2_5_vl"}, set(), None),
        ({"model_type": "qwen2_5_vl", **METHOD}, RPN, "sd-rpn"),
        ({"model_type": "qwen2_5_vl", **METHOD}, RPN | {"model.twig_norm.weight"}, "sd-rpn"),
        ({"model_type": "qwen2_5_vl", **QZOOM}, RPN | {"twig_head.weight"}, "sd-rpn"),
        ({"model_type": "qwen2_5_vl", **QZOOM}, RPN, "q-zoom"),
        ({"model_type": "qwen2_5_vl", **METHOD}, GATE, "q-zoom"),
        ({"model_type": "qwen3_vl", **METHOD}, {"model.language_model.twig_layers.0.x"}, "q-zoom"),
    ],
)
def test_whose_region_proposal_network_it_is(config: dict[str, Any], names: set[str], expected: str | None) -> None:
    assert recognised_scheme(config, names) == expected


def test_what_was_recognised_can_be_overridden() -> None:
    qzoom = {"model_type": "qwen2_5_vl", **QZOOM}
    assert recognised_scheme(qzoom, GATE, "sd-rpn") == "sd-rpn"
    assert recognised_scheme({"model_type": "qwen2_5_vl", **METHOD}, RPN, "q-zoom") == "q-zoom"
    with pytest.raises(BadInput, match=r"saved by SD-RPN, .* expected the scheme sd-rpn, or auto; got q-zoom"):
        recognised_scheme(qzoom, RPN | {"twig_head.weight"}, "q-zoom")
    with pytest.raises(BadInput, match="SD-RPN has no Qwen3-VL"):
        recognised_scheme({"model_type": "qwen3_vl"}, GATE, "sd-rpn")


def test_a_scheme_is_of_a_region_proposal_network(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no region proposal network that the scheme q-zoom could be for; leave it"):
        open_checkpoint(write_qwen(tmp_path, config_of(CONFIG_25)), scheme="q-zoom")


def test_sd_rpn_s_own_tensors_are_not_needed(tmp_path: Path) -> None:
    more = {"model.twig_norm.weight": (64,), "twig_head.weight": (320, 64)}
    with open_qwen(write_qwen(tmp_path, config_of(CONFIG_25, **METHOD), more=more)) as weights:
        assert weights.spec.rpn is not None
        assert weights.spec.rpn.scheme == "sd-rpn"
        assert weights.spec.rpn.gate_layers == 0
        assert "rpn.norm.weight" not in weights.names


def test_a_gate_that_the_config_switches_off(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25, **QZOOM))
    (folder / "config.json").write_text(json.dumps(config_of(CONFIG_25, **{**QZOOM, "enable_high_res": False})))
    with open_qwen(folder) as weights:
        assert weights.spec.rpn is not None
        assert weights.spec.rpn.gate_layers == 0
        assert not any(name.startswith("gate.") for name in weights.names)


def test_a_gate_of_other_length_and_positions_of_the_source(tmp_path: Path) -> None:
    config = config_of(CONFIG_3, **{**QZOOM, "high_res_T": 1, "high_res_K": 2, "reuse_src_pos": True})
    with open_qwen(write_qwen(tmp_path, config)) as weights:
        assert weights.spec.rpn is not None
        assert weights.spec.rpn.gate_layers == 1
        assert weights.spec.rpn.reuse_positions


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("visual.blocks.1.attn.qkv.bias", r"visual\.blocks\.1\.attn\.qkv\.bias \[96\] is missing from"),
        ("visual.merger.mlp.2.weight", r"visual\.merger\.mlp\.2\.weight \[64, 128\] is missing"),
        ("model.layers.3.self_attn.q_proj.bias", r"model\.layers\.3\.self_attn\.q_proj\.bias \[64\] is missing"),
        ("model.twig_layers.1.self_attn.k_proj.weight", r"model\.twig_layers\.1\.self_attn\.k_proj\.weight \[32, 64\]"),
        ("model.high_res_head.bias", r"model\.high_res_head\.bias \[1\] is missing"),
        ("lm_head.weight", r"lm_head\.weight \[320, 64\] is missing"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, lost: str, message: str) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25, **QZOOM), keep=lambda name: name != lost)
    with pytest.raises(BadCheckpoint, match=message):
        open_qwen(folder)


def test_a_misspelt_tensor_is_pointed_at(tmp_path: Path) -> None:
    folder = write_qwen(
        tmp_path,
        config_of(CONFIG_3),
        more={"model.visual.pos_embedding.weight": (64, 32)},
        keep=lambda name: name != "model.visual.pos_embed.weight",
    )
    expected = (
        r"pos_embed\.weight \[64, 32\] is missing .*; the closest name in it is model\.visual\.pos_embedding\.weight"
    )
    with pytest.raises(BadCheckpoint, match=expected):
        open_qwen(folder)


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_3))
    (folder / "config.json").write_text(
        json.dumps(config_of(CONFIG_3, vision_config={**CONFIG_3["vision_config"], "num_position_embeddings": 81}))
    )
    with pytest.raises(BadCheckpoint, match=r"pos_embed\.weight of .* has the shape \[64, 32\]; expected \[81, 32\]"):
        open_qwen(folder)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (CONFIG_25, {"use_sliding_window": True}, "use_sliding_window is true, which is not supported"),
        (CONFIG_25, {"quantization_config": {"quant_method": "awq"}}, "quantization_config says that the weights are"),
        (CONFIG_25, {"hidden_act": "gelu"}, 'hidden_act is "gelu", which is not supported; expected "silu"'),
        (CONFIG_25, {"rope_scaling": {"type": "yarn"}}, "rope type 'yarn' is not supported; expected default or mrope"),
        (CONFIG_25, {"rope_scaling": {"mrope_section": [2, 3, 4]}}, r"rope_sections are \[2, 3, 4\]; expected 8 pairs"),
        (CONFIG_25, {"rope_scaling": {"mrope_section": [8]}}, "mrope_section is .*; expected three whole numbers"),
        (CONFIG_25, {**QZOOM, "high_res_K": 1}, "high_res_K is 1, which is not supported; expected 2"),
        (CONFIG_25, {**QZOOM, "twig_K": 3}, "an RPN of 2 layers after layer 3 needs 5 LLM layers"),
        (CONFIG_25, {**QZOOM, "roi_source": "hidden_states"}, 'roi_source is "hidden_states", which is not supported'),
        (CONFIG_25, {**METHOD, "roi_multi_head": False}, "roi_multi_head is false, which is not supported"),
        (CONFIG_3, {"vision_config": {"num_position_embeddings": 50}}, "num_position_embeddings is 50; expected the"),
        (CONFIG_3, {"vision_config": {"in_channels": 1}}, "in_channels is 1, which is not supported; expected 3"),
        (
            CONFIG_3,
            {"vision_config": {"deepstack_visual_indexes": [9]}},
            r"deepstack_layers are \[9\]; expected rising",
        ),
        (CONFIG_3, {"vision_config": {"out_hidden_size": 65}}, "out_hidden_size is 65; expected 64"),
    ],
)
def test_an_entry_that_is_not_supported(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    parts = {key: {**base.get(key, {}), **value} if key == "vision_config" else value for key, value in changes.items()}
    method = QZOOM if "enable_high_res" in changes else METHOD if "twig_K" in changes else {}
    folder = write_qwen(tmp_path, config_of(base, **method))
    (folder / "config.json").write_text(json.dumps(config_of(base, **parts)))
    with pytest.raises(BadCheckpoint, match=message):
        open_qwen(folder)


def test_a_gate_without_a_region_proposal_network(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25, **QZOOM), keep=lambda name: "twig" not in name)
    with pytest.raises(BadCheckpoint, match="the weights hold a gate and no region proposal network"):
        open_qwen(folder)


def test_a_config_that_promises_a_region_proposal_network(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25))
    (folder / "config.json").write_text(json.dumps(config_of(CONFIG_25, **METHOD)))
    with pytest.raises(BadCheckpoint, match="enable_twig is true, and the weights hold no twig_layers"):
        open_qwen(folder)


@pytest.mark.parametrize(
    ("part", "message"),
    [("visual.", "has no vision tower of qwen2.5-vl"), ("model.layers", "has no decoder layers of qwen2.5-vl")],
)
def test_half_a_checkpoint(tmp_path: Path, part: str, message: str) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25), keep=lambda name: not name.startswith(part))
    with pytest.raises(BadCheckpoint, match=message):
        open_qwen(folder)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25))
    with open_qwen(folder) as weights:
        assert np.isfinite(weights.read("llm.norm.weight")).all()
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-4:] = np.array([np.nan], np.float32).tobytes()
    (folder / "model.safetensors").write_bytes(bytes(raw))
    with open_qwen(folder) as weights:
        last = max(weights.names, key=lambda name: _offset(raw, weights._places[name].file_name))
        with pytest.raises(BadCheckpoint, match=r"holds 1 of \d+ numbers that are NaN or infinite"):
            weights.read(last)


def test_pixels_come_from_the_processor_then_from_the_config(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path, config_of(CONFIG_25))
    for processor, config, expected in (
        (None, {}, (4 * 784, 16384 * 784)),
        (None, {"min_pixels": 200704, "max_pixels": 451584}, (200704, 451584)),
        ({"min_pixels": 3136, "max_pixels": 78400}, {"max_pixels": 451584}, (3136, 78400)),
        ({"size": {"shortest_edge": 6272, "longest_edge": 7840}}, {}, (6272, 7840)),
    ):
        (folder / "config.json").write_text(json.dumps(config_of(CONFIG_25, **config)))
        path = folder / "preprocessor_config.json"
        path.unlink(missing_ok=True)
        if processor is not None:
            path.write_text(json.dumps(processor))
        with open_qwen(folder) as weights:
            vision = weights.spec.vision
            assert isinstance(vision, Qwen25Vision)
            assert (vision.least_pixels, vision.most_pixels) == expected


def test_every_shape_is_of_one_of_four_parts(tmp_path: Path) -> None:
    with open_qwen(write_qwen(tmp_path, config_of(CONFIG_3, **QZOOM))) as weights:
        assert {name.partition(".")[0] for name in tensor_shapes(weights.spec)} == {"vision", "llm", "rpn", "gate"}


def _offset(raw: bytearray, place: str) -> int:
    """Where a safetensors file has a tensor."""
    size = int.from_bytes(raw[:8], "little")
    start: int = json.loads(bytes(raw[8 : 8 + size]))[place]["data_offsets"][0]
    return start
