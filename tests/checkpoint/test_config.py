"""From JSON files to a model description: defaults, spellings, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.families.llava.config import read_spec
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.families.registry import spec_from_json
from sdrpn.method.spec import ModelSpec, RopeScaling, RpnSpec
from tests.tiny_models import tiny_spec

CLIP_LARGE = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
}
# As published: whatever equals a default is absent.
HUB_CONFIG = {
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "vision_config": CLIP_LARGE,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
LLAVA_CONFIG = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "image_aspect_ratio": "pad",
    "intermediate_size": 13824,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava_llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "vocab_size": 32000,
}
RPN_CONFIG = {
    "enable_twig": True,
    "roi_branch": True,
    "roi_loss": "bce",
    "roi_multi_head": True,
    "twig_K": 15,
    "twig_T": 3,
}


def spec_of(folder: Path, config: dict[str, Any], tower: dict[str, Any] | None = None) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(config))
    if tower is None:
        return read_spec(folder, None)
    (folder / "clip").mkdir(exist_ok=True)
    (folder / "clip" / "config.json").write_text(json.dumps(tower))
    return read_spec(folder, folder / "clip")


def test_what_the_published_hf_config_leaves_out(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, HUB_CONFIG)
    assert (spec.llm.width, spec.llm.layers, spec.llm.heads, spec.llm.kv_heads) == (4096, 32, 32, 32)
    assert (spec.llm.head_dim, spec.llm.mlp_width, spec.llm.vocabulary) == (128, 11008, 32064)
    assert (spec.llm.max_context, spec.llm.rms_norm_eps, spec.llm.rope_theta) == (4096, 1e-5, 10000.0)
    assert clip_of(spec).grid_side == 24
    assert clip_of(spec).used_layers == 23
    assert clip_of(spec).pad_colour == (122, 116, 104)
    assert (spec.prompt.image_token_id, spec.prompt.pad_token_id, spec.prompt.eos_token_ids) == (32000, 32001, (2,))
    assert (spec.rpn, spec.tap_layer) == (None, 16)


def test_an_hf_config_without_parts_is_llava_7b(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"model_type": "llava"})
    assert (clip_of(spec).width, clip_of(spec).image_size_px, spec.llm.width) == (1024, 336, 4096)


def test_the_original_config(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, LLAVA_CONFIG, {"model_type": "clip", "vision_config": CLIP_LARGE})
    assert (spec.llm.width, spec.llm.head_dim, spec.llm.rope_theta) == (5120, 128, 10000.0)
    assert (spec.rpn, spec.tap_layer, spec.prompt.template) == (None, 20, "vicuna_v1")
    assert spec.prompt.image_token_id is None


@pytest.mark.parametrize(
    ("changes", "rpn"),
    [
        ({}, RpnSpec(3, True, "bce")),
        ({"roi_loss": "mse", "roi_multi_head": False}, RpnSpec(3, False, "mse")),
        ({"roi_multi_head": None}, RpnSpec(3, False, "bce")),  # the official code's default
        ({"enable_twig": False}, None),
        ({"roi_branch": None}, None),
    ],
)
def test_the_official_rpn_entries(tmp_path: Path, changes: dict[str, Any], rpn: RpnSpec | None) -> None:
    spec = spec_of(tmp_path, LLAVA_CONFIG | RPN_CONFIG | changes, CLIP_LARGE)
    assert spec.rpn == rpn
    assert spec.tap_layer == (15 if rpn else 20)


@pytest.mark.parametrize(
    ("entries", "theta", "scaling"),
    [
        ({}, 10000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 10000.0, RopeScaling("linear", 2.0)),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4}}, 10000.0, RopeScaling("linear", 4.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 5e5,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 1024,
                }
            },
            5e5,
            RopeScaling("llama3", 8.0, 1.0, 4.0, 1024),
        ),
    ],
)
def test_rope_in_both_spellings(
    tmp_path: Path, entries: dict[str, Any], theta: float, scaling: RopeScaling | None
) -> None:
    spec = spec_of(tmp_path, HUB_CONFIG | {"text_config": HUB_CONFIG["text_config"] | entries})  # type: ignore[operator]
    assert (spec.llm.rope_theta, spec.llm.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "identity"}, 'mm_projector_type is "identity".*expected linear or mlpNx_gelu'),
        ({"mm_projector_type": "mlp99x_gelu"}, 'mm_projector_type is "mlp99x_gelu".*N from 1 to 8'),
        ({"mm_projector_type": 2}, "mm_projector_type is 2"),
        ({"mm_vision_select_layer": [-2, -5]}, r"mm_vision_select_layer is \[-2, -5\]: a projector that reads several"),
        ({"mm_vision_select_layer": ["x"]}, "mm_vision_select_layer is 'x'; expected a whole number"),
        ({"mm_patch_merge_type": "spatial_unpad"}, 'mm_patch_merge_type is "spatial_unpad"'),
        ({"image_aspect_ratio": "anyres"}, 'image_aspect_ratio is "anyres"'),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is true"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu".*expected "silu"'),
        ({"model_type": "llava_phi"}, r'model_type is "llava_phi" \(LLaVA-Phi, .*\), which is not supported'),
        ({"model_type": "llava_unheard_of"}, 'model_type is "llava_unheard_of", which is not supported'),
        ({"s2": True}, r"s2 is true \(S2, which reads a picture at several scales\), which is not supported"),
        ({"s2_scales": "336,672,1008"}, "s2_scales is .*several scales"),
        ({"mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}, "mm_video_tower is .*Video-LLaVA"),
        ({"mm_resampler_type": "perceiver"}, 'mm_resampler_type is "perceiver"'),
        (
            {"quantization_config": {"bits": 4}},
            "quantization_config: the weights are quantised .by an unnamed method",
        ),
        (
            {"quantization_config": {"quant_method": "awq"}},
            r"quantised \(AWQ\), .*before that, and quantise it in the export",
        ),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantised \(bitsandbytes\)"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope' is not supported; expected default"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 0}},
            "factor of the rope scaling yarn is 0.0; expected a number above 0",
        ),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor of the rope scaling linear is -1.0"),
        ({"rope_scaling": {"type": "dynamic", "factor": "2"}}, "factor is '2'; expected a number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"roi_loss": "l1"}, 'roi_loss is "l1"'),
        ({"roi_source": "hidden"}, "roi_source"),
        ({"twig_K": None}, "twig_K is missing; expected a whole number"),
        ({"twig_T": "3"}, "twig_T is '3'; expected a whole number"),
        ({"enable_twig": 1}, "enable_twig is 1; expected true or false"),
        ({"hidden_size": 5120.5}, "hidden_size is 5120.5"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'; expected a number"),
        ({"eos_token_id": ["x"]}, "eos_token_id"),
        ({"rope_scaling": "linear"}, "rope_scaling|rope_parameters"),
        ({"mm_hidden_size": 1152}, "is the wrong vision tower: its width is 1024, and .* expects 1152"),
        ({"twig_K": 38}, "needs 41 LLM layers"),
        ({"num_key_value_heads": 7}, "heads"),
    ],
)
def test_refusals_of_the_original_layout(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        spec_of(tmp_path, LLAVA_CONFIG | RPN_CONFIG | changes, CLIP_LARGE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava_next"}, r'model_type is "llava_next" \(LLaVA-NeXT.*tiles\).*llava-hf/llava-1\.5-7b-hf'),
        (
            {"model_type": "llama"},
            r'model_type is "llama" \(a language model without.* the base of a fine-tune',
        ),
        ({"model_type": None}, 'model_type is "missing"'),
        ({"vision_feature_select_strategy": "full"}, 'vision_feature_select_strategy is "full"'),
        (
            {"vision_feature_layer": [-2, -5]},
            r"vision_feature_layer is \[-2, -5\]: a projector that reads several layers",
        ),
        ({"vision_feature_layer": -30}, "select_layer -30"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is false"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"text_config": {"model_type": "qwen2"}}, 'text_config: model_type is "qwen2"'),
        ({"text_config": {"model_type": "mistral", "sliding_window": 0}}, "sliding_window is 0"),
        ({"text_config": {"mlp_bias": True}}, "mlp_bias is true"),
        ({"text_config": 3}, "text_config is 3; expected an object"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, r"siglip_vision_model. \(a SigLIP tower"),
        ({"vision_config": CLIP_LARGE | {"hidden_act": "relu"}}, "hidden_act"),
        ({"vision_config": CLIP_LARGE | {"patch_size": 15}}, "patch_size_px"),
    ],
)
def test_refusals_of_hugging_face_layouts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        spec_of(tmp_path, HUB_CONFIG | changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mm_vision_tower": "google/siglip-so400m-patch14-384"}, r"siglip-so400m.*\(a SigLIP tower\), which is not"),
        ({"mm_vision_tower": "LanguageBind/LanguageBind_Image"}, "a LanguageBind tower"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "pictures in tiles"),
        ({"model_type": "llava_qwen"}, "llava_qwen"),
        ({"mm_projector_type": "ldp"}, 'mm_projector_type is "ldp"'),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(GPTQ\)"),
        (
            {"mm_vision_tower": None, "mm_image_tower": "LanguageBind/LanguageBind_Image"},
            "mm_image_tower is .*Video-LLaVA",
        ),
    ],
)
def test_what_is_refused_before_a_tower_is_looked_for(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    """The refusal comes before a tower or weights are downloaded."""
    (tmp_path / "config.json").write_text(json.dumps(LLAVA_CONFIG | changes))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(BadCheckpoint, match=says):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "expected"), [("llava_llama", "vicuna_v1"), ("llava_mistral", "[INST] x [/INST]")]
)
def test_whose_prompt_an_original_layout_has(tmp_path: Path, model_type: str, expected: str) -> None:
    """A Mistral's instruct template counts; Vicuna's does not, since LLaVA-1.5's conversation has another image."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "[INST] x [/INST]"}))
    spec = spec_of(tmp_path, LLAVA_CONFIG | {"model_type": model_type}, CLIP_LARGE)
    assert spec.prompt.template == expected
    (tmp_path / "tokenizer_config.json").unlink()
    assert spec_of(tmp_path, LLAVA_CONFIG | {"model_type": model_type}, CLIP_LARGE).prompt.template == "vicuna_v1"


def test_files_that_are_missing_or_malformed(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"config\.json is missing"):
        read_spec(tmp_path, None)
    for text in ("{", "[1]", '"x"'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadCheckpoint, match=r"config\.json is not"):
            read_spec(tmp_path, None)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadCheckpoint, match=r"is not JSON that can be read .*codec"):
        read_spec(tmp_path, None)


@pytest.mark.parametrize(
    ("name", "content", "template"),
    [
        ("chat_template.jinja", "{{ a }}", "{{ a }}"),
        ("chat_template.json", json.dumps({"chat_template": "{{ b }}"}), "{{ b }}"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ c }}"}), "{{ c }}"),
        (
            "tokenizer_config.json",
            json.dumps(
                {"chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "{{ d }}"}]}
            ),
            "{{ d }}",
        ),
        ("other.json", "{}", "vicuna_v1"),
    ],
)
def test_where_a_chat_template_is_found(tmp_path: Path, name: str, content: str, template: str) -> None:
    (tmp_path / name).write_text(content)
    assert spec_of(tmp_path, HUB_CONFIG).prompt.template == template


def test_files_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    (tmp_path / "processor_config.json").write_text(
        '{"image_processor": {"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 2]}}'
    )
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"32000": {"content": "<img>"}}}')
    spec = spec_of(tmp_path, HUB_CONFIG)
    assert spec.prompt.eos_token_ids == (2, 7)
    assert spec.prompt.image_token == "<img>"
    assert (clip_of(spec).image_mean, clip_of(spec).image_std) == ((0.5, 0.5, 0.5), (1.0, 1.0, 2.0))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5]}')
    with pytest.raises(BadCheckpoint, match=r"image_mean is .*; expected three numbers"):
        spec_of(tmp_path, HUB_CONFIG)


def test_tied_embeddings(tmp_path: Path) -> None:
    assert not spec_of(tmp_path, HUB_CONFIG).llm.tied_embeddings
    assert spec_of(tmp_path, HUB_CONFIG | {"tie_word_embeddings": True}).llm.tied_embeddings
    text_config = HUB_CONFIG["text_config"] | {"tie_word_embeddings": True}  # type: ignore[operator]
    assert spec_of(tmp_path, HUB_CONFIG | {"text_config": text_config}).llm.tied_embeddings


def test_a_description_survives_json() -> None:
    spec = tiny_spec(rope_scaling=RopeScaling("linear", 2.0))
    assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec
