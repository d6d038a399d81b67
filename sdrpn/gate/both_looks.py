"""One look and two at several questions at once: where the RPN points, and the answers to both. PyTorch.

Both looks at a question begin with the same rows, and so do all questions about one picture: these run once. Knows no
text and no files.
s rows of a prompt, D width of the LLM.
"""

from __future__ import annotations

import dataclasses
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
from sdrpn.model.generation import Generated, continue_batch
from sdrpn.model.layer_stack import LayerStack
from sdrpn.model.layers import KvCache
from sdrpn.model.looks import crop_looks, picture_looks
from sdrpn.model.prompt_batch import PromptBatch, prompt_batch
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
    if questions:
        answers = _answered(model, list(questions.values()), policy, max_new_tokens)
        found |= zip(questions, answers, strict=True)
    return [found[place] for place in range(len(asked))]


def _answered(
    model: SdRpnModel, questions: Sequence[_Asked], policy: RoiPolicy, max_new_tokens: int
) -> list[tuple[Generated, Generated] | ContextTooLong]:
    layers, once = LayerStack(model), [question.once for question in questions]
    batch = _batch(once)
    cache, taps = batch.prefilled_with_stream(layers, model.spec.tap_layer)
    found: dict[int, tuple[Generated, Generated] | ContextTooLong] = {}
    twice = dict[int, WatchedPrompt]()
    for place, prompt in _second_prompts(model, questions, _crops(model, questions, taps, policy)).items():
        try:
            require_room(model, prompt, max_new_tokens)
            twice[place] = prompt
        except ContextTooLong as error:
            found[place] = error
    again = list[Generated]()
    if twice:
        second, prompts = _batch(list(twice.values())), list(twice.values())
        shared = batch.shared_of(cache, list(twice)) if len(second.shared) == len(batch.shared) else None
        prefilled = second.prefilled(layers, shared=shared)
        again = _continued(model, layers, second, prefilled, prompts, max_new_tokens)
    first = _continued(model, layers, batch, cache, once, max_new_tokens)
    answers = dict(enumerate(first)) | dict(zip(twice, again, strict=True))
    return [found.get(place, (own, answers[place])) for place, own in enumerate(first)]


def _batch(prompts: Sequence[WatchedPrompt]) -> PromptBatch:
    return prompt_batch([prompt.rows for prompt in prompts], [prompt.start for prompt in prompts], apart=True)


def _continued(
    model: SdRpnModel,
    layers: LayerStack,
    batch: PromptBatch,
    cache: KvCache,
    prompts: Sequence[WatchedPrompt],
    max_new_tokens: int,
) -> list[Generated]:
    spec = model.spec.prompt
    return continue_batch(
        model,
        layers,
        batch,
        cache,
        max_new_tokens=max_new_tokens,
        stop_ids=spec.eos_token_ids,
        penalty=spec.repetition_penalty,
        prompt_ids=[prompt.text_ids for prompt in prompts],
    )


def _looks(model: SdRpnModel, pictures: Sequence[Image.Image]) -> dict[int, LookTokens]:
    """A look at each picture, by its identity: several questions may be about one."""
    different = list({id(picture): picture for picture in pictures}.values())
    found: dict[int, LookTokens] = {}
    for first in range(0, len(different), ENCODED_AT_ONCE):
        some = different[first : first + ENCODED_AT_ONCE]
        found |= zip(map(id, some), picture_looks(model, some), strict=True)
    return found


def _second_prompts(
    model: SdRpnModel, questions: Sequence[_Asked], chosen: Sequence[Sequence[Crop]]
) -> dict[int, WatchedPrompt]:
    """The prompts with crops, of the questions that have any."""
    pairs = [(each.picture, crop) for each, crops in zip(questions, chosen, strict=True) for crop in crops]
    seen = list[LookTokens]()
    for first in range(0, len(pairs), ENCODED_AT_ONCE):
        seen += crop_looks(model, pairs[first : first + ENCODED_AT_ONCE])
    found, looks = dict[int, WatchedPrompt](), iter(seen)
    for place, (each, crops) in enumerate(zip(questions, chosen, strict=True)):
        if crops:
            before, after, own = each.ids.ids_before, each.ids.ids_after, [next(looks) for _ in crops]
            rows = prompt_rows(model, each.picture, each.look, before, after, crops, seen=own)
            found[place] = dataclasses.replace(each.once, rows=rows)
    return found


def _crops(
    model: SdRpnModel, questions: Sequence[_Asked], taps: Sequence[Tensor], policy: RoiPolicy
) -> list[tuple[Crop, ...]]:
    """Where the RPN points at each, by its tap (s,D)."""
    spec, rpn = model.spec, model.rpn
    assert rpn is not None
    assert spec.rpn is not None
    most, device = max(map(len, taps)), taps[0].device
    tap = torch.stack([functional.pad(rows, (0, 0, 0, most - len(rows))) for rows in taps])  # what is behind has no say
    positions = torch.cat([question.once.rows.placed.rows(0, most, device) for question in questions])
    scores = rpn(tap, positions, torch.tensor([len(rows) - 1 for rows in taps], device=device))
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


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
