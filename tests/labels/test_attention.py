"""Rows of attention, gathered: equal to whole attention matrices of transformers, whichever rows are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sdrpn.checkpoint import open_checkpoint
from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.labels.attention import Rows, WatchedAnswer, all_heads, watch_answer
from sdrpn.method.geometry import PaddedGrid
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.looks import look_tokens, picture_tokens
from sdrpn.model.reference import reference_answer
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt
from tests.pictures import photo
from tests.tolerances import SAME_MATH_ABS

PROMPT = Prompt((1, 5, 9), (20, 21, 22))
CELLS, BEFORE = 16, 3
LENGTH = BEFORE + CELLS + 3
# Rows of this family are at positions of their own numbers, whatever the grid.
watching = partial(watch_answer, grid=PaddedGrid((32, 32), 32, 4))
STATE_NAMES = {
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def watch(model: SdRpnModel, image: Tensor, *asked: Any, **options: Any) -> WatchedAnswer:
    return watching(model, LookTokens(image[None]), *asked, **options)


@pytest.fixture(scope="module")
def model(text_checkpoint: Path) -> Iterator[SdRpnModel]:
    """Two query heads per key head, the tap in the middle."""
    with open_checkpoint(text_checkpoint) as checkpoint:
        yield model_from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def image(model: SdRpnModel) -> Tensor:
    rng = np.random.default_rng(0)
    side = clip_of(model.spec).image_size_px
    return look_tokens(model, {"pixel_values": rng.standard_normal((1, 3, side, side)).astype(np.float32)})


def whole_attention(model: SdRpnModel, image: Tensor, answer: tuple[int, ...]) -> NDArray[Any]:
    """(L,H,S,S) of prompt and answer, by transformers."""
    llm = model.spec.llm
    config = LlamaConfig(
        vocab_size=llm.vocabulary,
        hidden_size=llm.width,
        intermediate_size=llm.mlp_width,
        num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads,
        head_dim=llm.head_dim,
        rms_norm_eps=llm.rms_norm_eps,
    )
    llama: Any = LlamaForCausalLM
    other = llama._from_config(config, attn_implementation="eager")
    state = {}
    for index, layer in enumerate([*model.trunk.layers, *model.tail.layers]):
        for name, value in layer.state_dict().items():
            state[f"model.layers.{index}.{STATE_NAMES[name.removesuffix('.weight')]}.weight"] = value
    other.load_state_dict(state, strict=False)
    before, after = (model.embed(torch.tensor(ids)) for ids in (PROMPT.ids_before, (*PROMPT.ids_after, *answer)))
    with torch.inference_mode():
        embeds = torch.cat((before, image, after))[None]
        attentions = other(inputs_embeds=embeds, output_attentions=True).attentions
    return np.stack([attention[0].numpy() for attention in attentions])


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("answer", slice(LENGTH, LENGTH + 3)),
        ("predicting", slice(LENGTH - 1, LENGTH + 2)),
        ("last-prompt", slice(LENGTH - 1, LENGTH)),
    ],
)
def test_rows_are_those_of_the_whole_matrix(model: SdRpnModel, image: Tensor, rows: Rows, wanted: slice) -> None:
    answer = (40, 41, 42)
    found = watch(model, image, PROMPT, all_heads(model.spec.llm), rows=rows, given_ids=answer)
    expected = whole_attention(model, image, answer)[:, :, wanted, BEFORE : BEFORE + CELLS].mean(axis=2)
    assert found.row_count == wanted.stop - wanted.start
    np.testing.assert_allclose(np.stack(list(found.attention.values())), expected, atol=SAME_MATH_ABS, rtol=0)


def test_some_heads_on_both_sides_of_the_tap(model: SdRpnModel, image: Tensor) -> None:
    answer = (40, 41)
    every = watch(model, image, PROMPT, all_heads(model.spec.llm), given_ids=answer).attention
    some = watch(model, image, PROMPT, {3: [2, 0], 1: [3]}, given_ids=answer).attention
    assert model.spec.tap_layer == 2
    np.testing.assert_allclose(some[3], every[3][[2, 0]], atol=SAME_MATH_ABS, rtol=0)
    np.testing.assert_allclose(some[1], every[1][[3]], atol=SAME_MATH_ABS, rtol=0)


def test_the_answer_is_the_model_s_own(model: SdRpnModel) -> None:
    from sdrpn.images.image import open_image

    picture = open_image(photo())
    image = picture_tokens(model, picture)
    plain = reference_answer(model, picture, PROMPT.ids_before, PROMPT.ids_after, roi=None, max_new_tokens=6)
    watched = watch(model, image, PROMPT, {0: [0]}, max_new_tokens=6)
    assert watched.token_ids == plain.token_ids
    stop_id = plain.token_ids[4]
    assert stop_id not in plain.token_ids[:4]
    stopped = watch(model, image, PROMPT, {0: [0]}, max_new_tokens=6, stop_ids=[stop_id])
    assert stopped.token_ids == plain.token_ids[:4]
    # The row of the last token predicts the end and counts; of an answer that was cut off it never ran.
    assert (stopped.row_count, watched.row_count) == (4, 5)


def test_watching_own_tokens_equals_watching_them_given(model: SdRpnModel, image: Tensor) -> None:
    heads = {1: [0, 1], 3: [2]}
    own = watch(model, image, PROMPT, heads, rows="predicting", max_new_tokens=4)
    given = watch(model, image, PROMPT, heads, rows="predicting", given_ids=own.token_ids)
    assert own.row_count == given.row_count == 4
    for layer in heads:
        np.testing.assert_allclose(own.attention[layer], given.attention[layer], atol=SAME_MATH_ABS, rtol=0)


def test_an_empty_answer_has_no_rows(model: SdRpnModel, image: Tensor) -> None:
    found = watch(model, image, PROMPT, {1: [0]}, given_ids=())
    assert (found.row_count, found.attention[1].max()) == (0, 0.0)


def test_nothing_stays_behind_on_the_model(model: SdRpnModel, image: Tensor) -> None:
    watch(model, image, PROMPT, {1: [0]}, given_ids=(40,))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("heads", [{4: [0]}, {0: [4]}, {0: [-1]}])
def test_a_head_that_is_not_there_is_named(model: SdRpnModel, image: Tensor, heads: dict[int, list[int]]) -> None:
    with pytest.raises(BadInput, match=r"does not exist: the model has layers 0 to 3 with heads 0 to 3"):
        watch(model, image, PROMPT, heads, given_ids=(40,))


def test_what_cannot_be_watched(model: SdRpnModel, image: Tensor) -> None:
    with pytest.raises(BadInput, match="no heads to record"):
        watch(model, image, PROMPT, {}, given_ids=(40,))
    with pytest.raises(ContextTooLong, match="need 522 positions; the model has 512"):
        watch(model, image, PROMPT, {0: [0]}, max_new_tokens=500)
