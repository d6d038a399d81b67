"""The plain path against transformers' LlavaForConditionalGeneration on the same random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.reference import reference_answer
from tests.tiny_models import tiny_spec
from tests.tolerances import TRANSFORMERS_LOGITS_ABS

IMAGE_ID = 90
BEFORE, AFTER = [1, 5, 9], [7, 8, 11, 12]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "gqa": {"num_key_value_heads": 2, "head_dim": 24},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
    "tied": {"tie_word_embeddings": True},
}


def hf_model(**text: Any) -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=7,
            hidden_act="gelu" if "rope_parameters" in text else "quick_gelu",
        ),
        text_config=LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            vocab_size=100,
            max_position_embeddings=128,
            initializer_range=0.2,
            **text,
        ),
        image_token_index=IMAGE_ID,
        image_seq_length=16,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    model: Any = LlavaForConditionalGeneration(config)
    return model.eval()


def our_logits(model: SdRpnModel, pixels: torch.Tensor) -> torch.Tensor:
    """(S,V): the logits of every position."""
    before, after = model.embed(torch.tensor(BEFORE)), model.embed(torch.tensor(AFTER))
    embeds = torch.cat((before, model.vision(pixels)[0], after))[None]
    positions = torch.arange(embeds.shape[1])[None]
    hidden = model.tail.hidden(model.trunk(embeds, positions), positions)
    logits: torch.Tensor = model.tail.head(model.tail.norm(hidden))[0]
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_equal_transformers(tmp_path: Path, variant: str) -> None:
    theirs = hf_model(**VARIANTS[variant])
    theirs.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 28, 28)
    ids = torch.tensor([[*BEFORE, *[IMAGE_ID] * 16, *AFTER]])
    expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits[0]
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.spec.rpn is None
        found = our_logits(model_from_checkpoint(checkpoint), pixels)
    difference = (found - expected).abs().max().item()
    assert difference < TRANSFORMERS_LOGITS_ABS, f"largest difference {difference}"
    assert expected.std() > 0.1, "the model is degenerate and proves nothing"


def test_transformers_current_module_names(tmp_path: Path) -> None:
    """A state dict as the modules name it, in shards as save_pretrained writes them, and as one torch file."""
    theirs = hf_model()
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="60KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 2
    (tmp_path / "by_hand").mkdir()
    (tmp_path / "by_hand" / "config.json").write_bytes((tmp_path / "saved" / "config.json").read_bytes())
    torch.save(theirs.state_dict(), tmp_path / "by_hand" / "pytorch_model.bin")
    with open_checkpoint(tmp_path / "saved") as one, open_checkpoint(tmp_path / "by_hand") as other:
        assert (one.layout, other.layout) == ("hf", "hf-current")
        assert one.spec == other.spec
        for name in one.names:
            np.testing.assert_array_equal(one.read(name), other.read(name))


@pytest.mark.parametrize("saved_as", [CLIPVisionModel, CLIPModel])
def test_a_clip_folder_of_transformers(tmp_path: Path, saved_as: Any) -> None:
    """The vision tower as the hub has it: alone, or with CLIP's text model."""
    spec = dataclasses.replace(tiny_spec(rpn=None))
    write_random_checkpoint(tmp_path / "c", spec, layout="llava")
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    config = vision if saved_as is CLIPVisionModel else saved_as.config_class(vision_config=vision.to_dict())
    tower = saved_as(config)
    tower.save_pretrained(tmp_path / "tower")
    expected = tower.state_dict()
    with open_checkpoint(tmp_path / "c", vision_tower=tmp_path / "tower") as checkpoint:
        assert checkpoint.spec.vision == spec.vision
        found = checkpoint.read("vision.layers.1.attention.q.weight")
    (name,) = (
        key for key in expected if "text" not in key and key.endswith("encoder.layers.1.self_attn.q_proj.weight")
    )
    np.testing.assert_array_equal(found, expected[name].numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bfloat16_checkpoint_loads_in_any_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    write_random_checkpoint(tmp_path / "c", tiny_spec(), dtype="bfloat16")
    with open_checkpoint(tmp_path / "c") as checkpoint:
        model = model_from_checkpoint(checkpoint, dtype)
        stored = checkpoint.read("llm.layers.3.mlp.down.weight").astype(np.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    found = model.state_dict()["tail.layers.1.mlp.down.weight"]
    torch.testing.assert_close(found.float(), torch.from_numpy(stored))


def test_generation_stops_at_a_stop_id(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "c", tiny_spec(rpn=None, image_token_id=299), layout="hf")
    with open_checkpoint(tmp_path / "c") as checkpoint:
        model = model_from_checkpoint(checkpoint)
    image = np.zeros((20, 30, 3), np.uint8)
    free = reference_answer(model, image, BEFORE, AFTER, roi=None, max_new_tokens=5)
    assert len(free.token_ids) == len(free.step_logits) == 5
    stop = free.token_ids[2]
    stopped = reference_answer(model, image, BEFORE, AFTER, roi=None, max_new_tokens=5, stop_ids={stop})
    end = free.token_ids.index(stop)
    assert stopped.token_ids == free.token_ids[:end]
    assert len(stopped.step_logits) == end + 1
    none = reference_answer(model, image, BEFORE, AFTER, roi=None, max_new_tokens=0)
    assert (none.token_ids, none.step_logits.shape) == ((), (0, 300))
