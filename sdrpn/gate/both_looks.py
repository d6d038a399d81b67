"""One look and two at several questions at once: where the RPN points, and the answers to both. PyTorch.

Both looks at a question begin with the same rows, and so do all questions about one picture: these run once. Knows no
text and no files.
B questions, S rows of the longest prompt, D width of the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdrpn.errors import BadImage, ContextTooLong
from sdrpn.families.registry import family_of
from sdrpn.labels.attention import WatchedPrompt, require_room, watched_prompt
from sdrpn.method.roi import Crop, RoiPolicy, roi_logits_from_scores
from sdrpn.model.base import SdRpnModel
from sdrpn.model.generation import Generated, generate_answers
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import KvCache
from sdrpn.model.looks import crop_looks, picture_looks
from sdrpn.model.prompt_rows import prompt_rows
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt

__all__ = ["both_looks"]

ENCODED_AT_ONCE = 16  # pictures, or crops


@dataclass(frozen=True, eq=False)
class _Asked:
    """A question: its picture, a look at it, the ids, and the prompt of one look."""

    picture: Image.Image
    look: LookTokens
    ids: Prompt
    once: WatchedPrompt


@torch.inference_mode()
def both_looks(
    model: SdRpnModel, asked: Sequence[tuple[Image.Image, Prompt]], policy: RoiPolicy, max_new_tokens: int
) -> list[tuple[Generated, Generated] | BadImage | ContextTooLong]:
    """Answer every question greedily with one look, and with a second one where the RPN points; without a gate.

    Args: model: with an RPN, and pictures as squares
    Returns: both answers, equal where the RPN points nowhere; an error in place of those to what cannot be asked
    """
    found: dict[int, tuple[Generated, Generated] | BadImage | ContextTooLong] = {}
    looks, questions = _looks(model, [picture for picture, _ in asked]), dict[int, _Asked]()
    for place, (picture, ids) in enumerate(asked):
        try:
            look = looks[id(picture)]
            once = watched_prompt(model, look, ids, model.spec.vision.grid(picture.size))
            require_room(model, once, max_new_tokens)
            questions[place] = _Asked(picture, look, ids, once)
        except (BadImage, ContextTooLong) as error:
            found[place] = error
    twice = dict[int, WatchedPrompt]()
    for place, prompt in _second_prompts(model, questions, policy).items():
        try:
            require_room(model, prompt, max_new_tokens)
            twice[place] = prompt
        except ContextTooLong as error:
            found[place] = error
            del questions[place]
    prompts = [*(each.once for each in questions.values()), *twice.values()]
    answers = _answers(model, prompts, max_new_tokens) if prompts else []
    once_of = dict(zip(questions, answers, strict=False))
    twice_of = once_of | dict(zip(twice, answers[len(questions) :], strict=True))
    found |= {place: (once_of[place], twice_of[place]) for place in questions}
    return [found[place] for place in range(len(asked))]


def _answers(model: SdRpnModel, prompts: Sequence[WatchedPrompt], max_new_tokens: int) -> list[Generated]:
    spec = model.spec.prompt
    return generate_answers(
        model,
        [prompt.rows for prompt in prompts],
        max_new_tokens=max_new_tokens,
        stop_ids=spec.eos_token_ids,
        penalty=spec.repetition_penalty,
        prompt_ids=[prompt.text_ids for prompt in prompts],
        starts=[prompt.start for prompt in prompts],
    )


def _looks(model: SdRpnModel, pictures: Sequence[Image.Image]) -> dict[int, LookTokens]:
    """A look at each picture, by its identity: several questions may be about one."""
    different = list({id(picture): picture for picture in pictures}.values())
    found: dict[int, LookTokens] = {}
    for first in range(0, len(different), ENCODED_AT_ONCE):
        some = different[first : first + ENCODED_AT_ONCE]
        found |= zip(map(id, some), picture_looks(model, some), strict=True)
    return found


def _second_prompts(model: SdRpnModel, questions: dict[int, _Asked], policy: RoiPolicy) -> dict[int, WatchedPrompt]:
    """The prompts with crops, of the questions that have any."""
    chosen = dict(zip(questions, _crops(model, list(questions.values()), policy), strict=True))
    pairs = [(questions[place].picture, crop) for place, crops in chosen.items() for crop in crops]
    seen = list[LookTokens]()
    for first in range(0, len(pairs), ENCODED_AT_ONCE):
        seen += crop_looks(model, pairs[first : first + ENCODED_AT_ONCE])
    found, own = dict[int, WatchedPrompt](), iter(seen)
    for place, crops in chosen.items():
        if crops:
            each = questions[place]
            before, after = each.ids.ids_before, each.ids.ids_after
            looks = [next(own) for _ in crops]
            rows = prompt_rows(model, each.picture, each.look, before, after, crops, seen=looks)
            found[place] = WatchedPrompt(rows, each.once.image, each.once.start, each.once.text_ids)
    return found


def _crops(model: SdRpnModel, questions: Sequence[_Asked], policy: RoiPolicy) -> list[tuple[Crop, ...]]:
    """Where the RPN points at each."""
    spec, rpn = model.spec, model.rpn
    assert rpn is not None
    assert spec.rpn is not None
    if not questions:
        return []
    tap, positions, last_index = _tap(model, [question.once for question in questions])
    scores = rpn(tap, positions, last_index)
    sinks = rpn.sink_logits(tap, positions) if spec.rpn.sink_query else None
    decide, found = family_of(spec).decide(policy, spec), list[tuple[Crop, ...]]()
    for number, question in enumerate(questions):
        hw, image = spec.vision.grid(question.picture.size).hw, question.once.image
        logits = roi_logits_from_scores(
            _array(scores[number, :, image]),
            hw,
            head_dim=spec.llm.head_dim,
            multi_head=spec.rpn.multi_head,
            loss=spec.rpn.loss,
        )
        seen = None if sinks is None else _array(sinks[number, image]).reshape(hw)
        found.append(tuple(decide(logits, question.picture.size, seen).crops))
    return found


def _tap(model: SdRpnModel, prompts: Sequence[WatchedPrompt]) -> tuple[Tensor, Tensor, Tensor]:
    """The tap (B,S,D), positions, and the last row of each; rows of 0 behind shorter prompts, which see no one."""
    most = max(prompt.length for prompt in prompts)

    def padded(rows: Sequence[Tensor]) -> Tensor:
        return torch.cat([functional.pad(each, (0, 0, 0, most - each.shape[1])) for each in rows])

    embeds = padded([prompt.rows.embeds for prompt in prompts])
    features = zip(*(prompt.rows.deepstack for prompt in prompts), strict=True)
    positions = torch.cat([prompt.rows.placed.rows(0, most, embeds.device) for prompt in prompts])
    last_index = torch.tensor([prompt.length - 1 for prompt in prompts], device=embeds.device)
    deepstack = [padded(feature) for feature in features]
    tap = LayerStack(model).run(embeds, positions, KvCache(), 0, model.spec.tap_layer, deepstack)
    return tap, positions, last_index


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
