"""Two passes, slow and simple: the reference that every faster path must equal.

Pass 1 scores the image's cells; pass 2 answers with the crops' tokens inserted after the image's. Pass 2 starts
again from the embeddings; only its decode steps use a KV cache. Greedy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdrpn.families.registry import family_of
from sdrpn.images.image import open_image
from sdrpn.method.roi import Decide, RoiDecision, RoiPolicy, roi_logits_from_scores
from sdrpn.model.base import SdRpnModel
from sdrpn.model.layers import KvCache
from sdrpn.model.looks import crop_tokens, picture_tokens
from sdrpn.model.positions import RowPositions, prompt_positions

__all__ = ["ImageSource", "ReferenceAnswer", "reference_answer"]

Float32 = NDArray[np.float32]
ImageSource = Image.Image | Path | str | NDArray[np.uint8]


@dataclass(frozen=True)
class ReferenceAnswer:
    """An answer and all intermediate results. S tokens of pass 1, n generated tokens."""

    token_ids: tuple[int, ...]  # without the stop id
    step_logits: Float32  # (n,V): the row of logits of each token; one more if a stop id ended the answer
    roi_logits: Float32 | None  # (h,w), before the sigmoid; None for a plain answer
    decision: RoiDecision | None
    roi_token_count: int
    tap: Float32 | None  # (S,D) of pass 1; None for a plain answer, which has no second pass
    image_embeds: Float32  # (h*w,D)
    roi_embeds: Float32  # (roi_token_count,D)


@torch.inference_mode()
def reference_answer(
    model: SdRpnModel,
    image: ImageSource,
    ids_before: Sequence[int],
    ids_after: Sequence[int],
    *,
    roi: RoiPolicy | None,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    decide: Decide | None = None,
) -> ReferenceAnswer:
    """Answer by token ids.

    Args:
        ids_before, ids_after: the prompt on either side of the image
        roi: None, or a model without an RPN: a plain answer, with one pass
        stop_ids: generation ends with the first of these
        decide: chooses the crops instead of `roi`
    Raises BadImage for an image that cannot be read.
    """
    picture = open_image(image)
    image_embeds, grid = picture_tokens(model, picture), model.spec.vision.grid(picture.size)
    before, after = (model.embed(torch.tensor(list(ids), dtype=torch.long)) for ids in (ids_before, ids_after))

    prompt = torch.cat((before, image_embeds, after))[None]  # (1,S,D)
    if decide is None and roi is not None:
        decide = family_of(model.spec).decide(roi, model.spec)
    tap, logits, decision, roi_embeds = None, None, None, image_embeds[:0]
    if model.rpn is not None and decide is not None:
        positions = prompt_positions(model.spec, len(before), grid, len(after)).rows(0, prompt.shape[1])
        tap = model.trunk(prompt, positions)
        scores = model.rpn(tap, positions)[0, :, len(before) : len(before) + len(image_embeds)]
        logits = _roi_logits(model, scores, grid.hw)
        decision = decide(logits, picture.size)
        roi_embeds = torch.cat([roi_embeds, *(crop_tokens(model, picture, crop) for crop in decision.crops)])

    crops = () if decision is None else decision.crops
    placed = prompt_positions(model.spec, len(before), grid, len(after), crops)
    prompt = torch.cat((before, image_embeds, roi_embeds, after))[None]
    token_ids, step_logits = _generate(model, prompt, placed, max_new_tokens, stop_ids)
    return ReferenceAnswer(
        token_ids=token_ids,
        step_logits=step_logits,
        roi_logits=logits,
        decision=decision,
        roi_token_count=len(roi_embeds),
        tap=None if tap is None else _array(tap[0]),
        image_embeds=_array(image_embeds),
        roi_embeds=_array(roi_embeds),
    )


def _roi_logits(model: SdRpnModel, scores: Tensor, hw: tuple[int, int]) -> Float32:
    """Scores (H,h*w) -> (h,w)."""
    rpn = model.spec.rpn
    assert rpn is not None
    head_dim = model.spec.llm.head_dim
    return roi_logits_from_scores(_array(scores), hw, head_dim=head_dim, multi_head=rpn.multi_head, loss=rpn.loss)


def _generate(
    model: SdRpnModel, prompt: Tensor, placed: RowPositions, max_new_tokens: int, stop_ids: Collection[int]
) -> tuple[tuple[int, ...], Float32]:
    """Prompt (1,S,D) -> token ids and their rows of logits (n,V)."""
    trunk_cache, tail_cache = KvCache(), KvCache()
    token_ids: list[int] = []
    rows: list[Tensor] = []
    embeds, start = prompt, 0
    while len(token_ids) < max_new_tokens:
        positions = placed.rows(start, start + embeds.shape[1])
        tap = model.trunk(embeds, positions, trunk_cache)
        rows.append(model.tail(tap, positions, tail_cache)[0])
        token_id = int(rows[-1].argmax())
        if token_id in stop_ids:
            break
        token_ids.append(token_id)
        start += embeds.shape[1]
        embeds = model.embed(torch.tensor([[token_id]]))
    logits = torch.stack(rows) if rows else torch.empty(0, model.spec.llm.vocabulary)
    return tuple(token_ids), _array(logits)


def _array(tensor: Tensor) -> Float32:
    array: NDArray[Any] = tensor.float().numpy()
    return array
