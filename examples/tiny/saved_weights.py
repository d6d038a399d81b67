"""The weights of a training as transformers names them, and back. The dense heads lie apart: no LLaVA has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from networks import IMAGE_ID, SPEC
from safetensors.torch import load_file, save_file
from tiny_llava import TinyLlava
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from sdrpn.families.llava.vision_spec import clip_of

HEADS_FILE = "training/dense_heads.safetensors"  # where no reader of checkpoints looks for weights


def llava_from(model: TinyLlava) -> LlavaForConditionalGeneration:
    """The same weights under transformers' LLaVA."""
    llava = LlavaForConditionalGeneration(llava_config(model))
    for ours, theirs in parts(model, llava):
        theirs.load_state_dict(ours.state_dict())
    ids = SPEC.prompt
    llava.generation_config.eos_token_id = ids.eos_token_ids[0]
    llava.generation_config.pad_token_id = ids.pad_token_id
    return llava


def llava_config(model: TinyLlava) -> LlavaConfig:
    """The configuration of the whole model."""
    return LlavaConfig(
        vision_config=model.tower.clip.config,
        text_config=model.llm.config,
        image_token_index=IMAGE_ID,
        image_seq_length=SPEC.vision.image_tokens,
        projector_hidden_act="gelu",
        vision_feature_layer=clip_of(SPEC).select_layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def parts(model: TinyLlava, llava: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Our modules and theirs."""
    theirs = llava.model.multi_modal_projector
    first, _, second = model.projector
    return [
        (model.tower.clip, llava.model.vision_tower),
        (model.llm.model, llava.model.language_model),
        (model.llm.lm_head, llava.lm_head),
        (first, theirs.linear_1),
        (second, theirs.linear_2),
    ]


def write_heads(model: TinyLlava, folder: Path) -> None:
    """Beside a checkpoint, so that training can go on from it."""
    (folder / HEADS_FILE).parent.mkdir()
    save_file({name: tensor.half() for name, tensor in model.heads.state_dict().items()}, folder / HEADS_FILE)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Named as `TinyLlava` names them, from a stage's folder or a checkpoint; a vision stage has no LLM."""
    if (folder / "state.pt").exists():
        state: dict[str, Tensor] = torch.load(folder / "state.pt", weights_only=True)["modules"]
        return state
    model = TinyLlava()
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    for ours, theirs in parts(model, llava):
        ours.load_state_dict(theirs.state_dict())
    if (folder / HEADS_FILE).exists():
        model.heads.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / HEADS_FILE).items()})
    return model.state_dict()
