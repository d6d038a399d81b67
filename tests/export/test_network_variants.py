"""Checkpoints of every network that is supported answer as transformers does, through export and ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from tests import reference_llava as tiny
from tests.pictures import photo
from tests.reference_llava import IMAGE_ID, ReferenceLlava, make_llava, require_same_answers

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MISTRAL = {"mistral": True, "num_key_value_heads": 2, "rope_theta": 1e6}
# What is made, and what LLaVA's config says of it.
ORIGINAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LLaVA-1.5": ({}, {}),
    "llama3 rope": ({"rope_parameters": LLAMA3}, {}),
    "ShareGPT4V": ({}, {"model_type": "share4v", "architectures": ["Share4VLlamaForCausalLM"]}),
    "BakLLaVA, window within the context": (MISTRAL | {"sliding_window": 9}, {"model_type": "llava_mistral"}),
    "BakLLaVA, window as long as the context": (MISTRAL | {"sliding_window": 128}, {"model_type": "llava_mistral"}),
    "LLaVA-Med, no window": (MISTRAL | {"sliding_window": None}, {"model_type": "llava_mistral"}),
    "linear projector": ({"projector_layers": 1}, {"mm_projector_type": "linear"}),
    "linear projector that is not named": ({"projector_layers": 1}, {"mm_projector_type": None}),
    "projector of three layers": ({"projector_layers": 3}, {"mm_projector_type": "mlp3x_gelu"}),
    "yarn": ({"rope_parameters": YARN}, {}),
    "yarn as transformers 4 writes it": (
        {"rope_parameters": YARN},
        {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {k: YARN[k] for k in YARN if k != "rope_theta"}},
    ),
    "yarn with every number": (
        {
            "rope_parameters": YARN
            | {"beta_fast": 8.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False}
        },
        {},
    ),
    "yarn with a factor for attention": ({"rope_parameters": YARN | {"attention_factor": 1.3}}, {}),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, {}),
    "linear rope": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}, {}),
    "list of one layer": ({}, {"mm_vision_select_layer": [-2]}),
    "all at once": (
        MISTRAL | {"sliding_window": 11, "projector_layers": 1, "rope_parameters": YARN},
        {"model_type": "llava_mistral", "mm_projector_type": "linear"},
    ),
}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "p.png"
    Image.fromarray(photo((70, 50))).save(path)
    return path


@pytest.mark.parametrize("name", ORIGINAL)
def test_original_layout(tmp_path: Path, picture: Path, name: str) -> None:
    made, config = ORIGINAL[name]
    reference = make_llava(**made)
    checkpoint = reference.save(tmp_path / "c", **config)
    for dialect in ("fused", "primitive") if "window" in name or name == "all at once" else ("fused",):
        export_bundle(checkpoint, tmp_path / "b", ExportOptions(dialect=dialect))
    require_same_answers(tmp_path / "b", reference, picture)


HF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Mistral with a window": ({"mistral": True, "sliding_window": 9, "num_key_value_heads": 2}, {}),
    "Mistral without": ({"mistral": True, "sliding_window": None, "num_key_value_heads": 2}, {}),
    "yarn": ({"rope_parameters": YARN}, {}),
    "tied above": ({}, {"tie_word_embeddings": True}),
    "tied within": ({"tie_word_embeddings": True}, {}),
    "list of one layer": ({}, {"vision_feature_layer": [-2]}),
}


@pytest.mark.parametrize("name", HF)
def test_hugging_face_layout(tmp_path: Path, picture: Path, name: str) -> None:
    made, config = HF[name]
    text = {**tiny._TEXT, **made}
    text_config: Any = MistralConfig if text.pop("mistral", False) else LlamaConfig
    torch.manual_seed(0)
    theirs: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**tiny._VISION),
            text_config=text_config(**text),
            image_token_index=IMAGE_ID,
            image_seq_length=16,
            **config,
        )
    )
    theirs.eval()
    tiny.randomize(theirs)
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path / "c")
    export_bundle(tmp_path / "c", tmp_path / "b")
    reference = ReferenceLlava(_Text(theirs), theirs.model.vision_tower, theirs.model.multi_modal_projector)
    require_same_answers(tmp_path / "b", reference, picture)


class _Text:
    """The decoder of a whole LLaVA, called as a model with a head is."""

    def __init__(self, llava: Any) -> None:
        self._llava = llava

    def get_input_embeddings(self) -> Any:
        return self._llava.get_input_embeddings()

    def __call__(self, inputs_embeds: torch.Tensor) -> Any:
        return self._llava(inputs_embeds=inputs_embeds)


def test_a_window_that_hides_nothing_is_left_out_of_the_graphs(tmp_path: Path) -> None:
    reference = make_llava(mistral=True, sliding_window=64)
    checkpoint = reference.save(tmp_path / "c", model_type="llava_mistral")
    sizes = {}
    for context in (64, 65):
        export_bundle(checkpoint, tmp_path / str(context), ExportOptions(max_context=context))
        sizes[context] = (tmp_path / str(context) / "trunk.fused-fp32.onnx").read_bytes().count(b"Greater")
    assert sizes[64] == 0 < sizes[65]


def test_dynamic_rope_ends_at_its_original_context(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    checkpoint = make_llava(rope_parameters=rope).save(tmp_path / "c")
    with open_checkpoint(checkpoint) as source:
        (note,) = source.notes
    assert "rope scaling dynamic has no effect up to 128 tokens" in note
    with pytest.raises(BadInput, match=r"max_context is 129; expected 17 .* to 128"):
        export_bundle(checkpoint, tmp_path / "b", ExportOptions(max_context=129))


def test_a_head_that_is_stored_although_it_is_tied(tmp_path: Path, picture: Path) -> None:
    """transformers ties only what is missing, or equal."""
    reference = make_llava()
    checkpoint = reference.save(tmp_path / "c", tie_word_embeddings=True)
    export_bundle(checkpoint, tmp_path / "b")
    require_same_answers(tmp_path / "b", reference, picture)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({}, r"mm_projector\.2\.weight: its projector has more than the 1 layers that mm_projector_type"),
        ({"projector_layers": 3}, r"mm_projector\.2\.weight: its projector has more than the 1 layers"),
    ],
)
def test_a_projector_of_more_layers_than_the_config_says(tmp_path: Path, made: dict[str, Any], says: str) -> None:
    checkpoint = make_llava(**made).save(tmp_path / "c", mm_projector_type=None)
    with pytest.raises(BadInput, match=says):
        open_checkpoint(checkpoint)


def test_mistrals_defaults(tmp_path: Path) -> None:
    """A config that leaves out what equals MistralConfig's defaults; null is not absent."""
    config = {"model_type": "llava", "text_config": {"model_type": "mistral"}}
    for changes, window, heads in ({}, 4096, 8), ({"sliding_window": None, "num_key_value_heads": None}, None, 32):
        (tmp_path / "config.json").write_text(json.dumps(config | {"text_config": {"model_type": "mistral"} | changes}))
        from sdrpn.families.llava.config import read_spec

        llm = read_spec(tmp_path, None).llm
        assert (llm.sliding_window, llm.kv_heads, llm.mlp_width, llm.max_context) == (window, heads, 14336, 131072)
