"""Attention of answers to pictures of any shape, several at once: that of transformers' own classes; the same ids."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sdrpn.checkpoint import open_checkpoint
from sdrpn.families.qwen.vision_spec import qwen_vision_of
from sdrpn.images.patches import picture_patches
from sdrpn.labels.attention import WatchedPrompt, all_heads, watch_answers, watched_prompt
from sdrpn.method.grids import cell_count
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.generation import generate_answers
from sdrpn.model.looks import picture_look
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt
from tests.families.qwen.saved_by_transformers import IMAGE, saved_model, token_types
from tests.tolerances import ATTENTION_ABS, SAME_MATH_ABS

BEFORE = (300, 7, 302)
AFTER = ((303, 11, 12, 13), (303, 14), (303, 15, 16, 17, 18, 19), (303, 20, 21))
SIZES = ((90, 60), (40, 130), (100, 90), (90, 60))
QUESTIONS = range(4)  # the last is about the first's picture
NEW_TOKENS = 5


@dataclass(frozen=True, eq=False)
class Both:
    """transformers' model, and of what it saves ours."""

    theirs: Any
    ours: SdRpnModel

    def inputs(self, number: int, answer: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
        """What transformers takes for one of the questions."""
        vision, image = qwen_vision_of(self.ours.spec), picture(number)
        rows, columns = vision.grid(image.size).hw
        side = vision.patch_size_px
        still = picture_patches(image, vision).reshape(-1, 3, 1, side * side).repeat(vision.frames, axis=2)
        ids = torch.tensor([[*BEFORE, *[IMAGE] * (rows * columns), *AFTER[number], *answer]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            **token_types(ids),
            "pixel_values": torch.from_numpy(still.reshape(len(still), -1)),
            "image_grid_thw": torch.tensor([[1, rows * vision.merge, columns * vision.merge]]),
        }

    def asked(self, number: int, answer: tuple[int, ...] | None = None) -> WatchedPrompt:
        grid = self.ours.spec.vision.grid(SIZES[number])
        return watched_prompt(self.ours, self.look(number % 3), Prompt(BEFORE, AFTER[number]), grid, answer)

    @functools.cache  # noqa: B019
    def look(self, number: int) -> LookTokens:
        return picture_look(self.ours, picture(number))

    def attention(self, number: int, answer: tuple[int, ...]) -> NDArray[np.float32]:
        """(L,H,answer,C), by transformers."""
        with torch.inference_mode():
            found = self.theirs(**self.inputs(number, answer), output_attentions=True).attentions
        cells = cell_count(self.ours.spec.vision.grid(picture(number).size).hw)
        every = np.stack([layer[0].numpy() for layer in found])
        return np.asarray(every[:, :, -len(answer) :, len(BEFORE) : len(BEFORE) + cells])


def picture(number: int) -> Image.Image:
    width, height = SIZES[number]
    return Image.fromarray(np.random.default_rng(number % 3).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture(scope="module", params=["qwen2.5-vl", "qwen3-vl"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = Path(tmp_path_factory.mktemp("saved") / "model")
    theirs = saved_model(request.param, folder)
    theirs.set_attn_implementation("eager")
    with open_checkpoint(folder) as checkpoint:
        yield Both(theirs, model_from_checkpoint(checkpoint))


def test_given_answers_in_one_batch(both: Both) -> None:
    """All heads of all layers, key heads that several query heads share among them; rows of padding play no part."""
    answers = [(40, 41, 42), (43,), (44, 45, 46, 47), (48, 49)]
    asked = [both.asked(number, answer) for number, answer in enumerate(answers)]
    assert len({prompt.length for prompt in asked}) == 4
    assert len({prompt.start for prompt in asked}) == 3
    found = watch_answers(both.ours, asked, all_heads(both.ours.spec.llm))
    for number, (watched, answer) in enumerate(zip(found, answers, strict=True)):
        expected = both.attention(number, answer).mean(axis=2)
        assert watched.row_count == len(answer)
        own = np.stack(list(watched.attention.values()))
        np.testing.assert_allclose(own, expected, atol=SAME_MATH_ABS, rtol=0)


@pytest.mark.parametrize("rows", ["answer", "predicting", "last-prompt"])
def test_own_answers_in_one_batch_are_those_one_by_one(both: Both, rows: Any) -> None:
    watch = partial(watch_answers, both.ours, heads={3: [2, 0], 1: [3]}, rows=rows, max_new_tokens=NEW_TOKENS)
    alone = [watch([both.asked(number)])[0] for number in QUESTIONS]
    stop_id = alone[1].token_ids[2]
    for stop_ids in ((), (stop_id,)):
        alone = [watch([both.asked(number)], stop_ids=stop_ids)[0] for number in QUESTIONS]
        together = watch([both.asked(number) for number in QUESTIONS], stop_ids=stop_ids)
        assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
        for one_by_one, found in zip(alone, together, strict=True):
            assert found.row_count == one_by_one.row_count
            for layer, attention in one_by_one.attention.items():
                np.testing.assert_allclose(found.attention[layer], attention, atol=ATTENTION_ABS, rtol=0)
    assert len({len(answer.token_ids) for answer in alone}) > 1, "some end before others"


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_ids_are_transformers_own(both: Both, penalty: float) -> None:
    asked = [both.asked(number) for number in QUESTIONS]
    found = generate_answers(
        both.ours,
        [prompt.rows for prompt in asked],
        starts=[prompt.start for prompt in asked] if penalty == 1.0 else None,
        max_new_tokens=NEW_TOKENS,
        penalty=penalty,
        prompt_ids=[(*prompt.text_ids, IMAGE) for prompt in asked],
    )
    for number, ids in enumerate(found):
        inputs = both.inputs(number)
        with torch.inference_mode():
            generated = both.theirs.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                do_sample=False,
                repetition_penalty=penalty,
            )
        assert ids == tuple(generated[0, inputs["input_ids"].shape[1] :].tolist())
