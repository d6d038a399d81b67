"""Two passes, slow and simple: the reference that every faster path must equal.

Pass 1 asks the gate, where there is one, whether to look again, and scores the image's cells; pass 2 answers with the
crops' tokens inserted after the image's. Pass 2 starts
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
from sdrpn.method.gate import gate_score, looks_again, map_statistics
from sdrpn.method.grids import cell_count
from sdrpn.method.roi import Decide, PolicyDecide, RoiDecision, RoiPolicy, roi_logits_from_scores, without_sinks
from sdrpn.method.spec import Vision
from sdrpn.model.base import SdRpnModel, with_vision
from sdrpn.model.layers import KvCache
from sdrpn.model.looks import picture_look
from sdrpn.model.prompt_rows import PromptRows, prompt_rows

__all__ = ["ImageSource", "ReferenceAnswer", "reference_answer"]

Bool = NDArray[np.bool_]
Float32 = NDArray[np.float32]
ImageSource = Image.Image | Path | str | NDArray[np.uint8]


@dataclass(frozen=True)
class ReferenceAnswer:
    """An answer and all intermediate results. S tokens of pass 1, n generated tokens."""

    token_ids: tuple[int, ...]  # without the stop id
    step_logits: Float32  # (n,V): the row of logits of each token; one more if a stop id ended the answer
    roi_logits: Float32 | None  # (h,w), before the sigmoid; None for a plain answer, or where the gate ended it
    decision: RoiDecision | None
    roi_token_count: int
    tap: Float32 | None  # (S,D) of pass 1; None for a plain answer, which has no second pass
    image_embeds: Float32  # (h*w,D)
    roi_embeds: Float32  # (roi_token_count,D)
    gate_logit: float | None = None  # before the sigmoid; None where there is no gate, or it was not asked
    sink_logits: Float32 | None = None  # (h,w); None where the RPN has no query for sinks
    keep_source: Bool | None = None  # (h*w,) the image tokens of pass 2; None: all of them


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
    vision: Vision | None = None,
) -> ReferenceAnswer:
    """Answer by token ids.

    Args:
        ids_before, ids_after: the prompt on either side of the image
        roi: None, or a model without an RPN: a plain answer, with one pass
        stop_ids: generation ends with the first of these
        decide: chooses the crops instead of `roi`, whatever a gate says
        vision: the model's own with another budget; None: its own
    Raises BadImage for an image that cannot be read.
    """
    model = model if vision is None else with_vision(model, vision)
    picture = open_image(image)
    look = picture_look(model, picture)
    prompt = prompt_rows(model, picture, look, ids_before, ids_after)
    first = None
    if model.rpn is not None and (decide is not None or roi is not None):
        chosen = _chosen(model, roi, decide)
        first = _first_pass(model, prompt, picture, len(ids_before), chosen, _gate_threshold(model, roi, decide))
        if first.decision is not None and first.decision.crops:
            prompt = prompt_rows(model, picture, look, ids_before, ids_after, first.decision.crops, first.keep_source)
    token_ids, step_logits = _generate(model, prompt, max_new_tokens, stop_ids)
    return ReferenceAnswer(
        token_ids=token_ids,
        step_logits=step_logits,
        roi_logits=None if first is None else first.roi_logits,
        decision=None if first is None else first.decision,
        roi_token_count=len(prompt.crop_tokens),
        tap=None if first is None else _array(first.tap[0]),
        image_embeds=_array(look.embeds[0]),
        roi_embeds=_array(prompt.crop_tokens),
        gate_logit=None if first is None else first.gate_logit,
        sink_logits=None if first is None else first.sink_logits,
        keep_source=None if first is None else first.keep_source,
    )


@dataclass(frozen=True, eq=False)
class _FirstPass:
    """What the first pass leads to; without a map where the gate ended it."""

    tap: Tensor  # (1,S,D)
    gate_logit: float | None
    roi_logits: Float32 | None = None
    sink_logits: Float32 | None = None
    decision: RoiDecision | None = None
    keep_source: Bool | None = None


def _chosen(model: SdRpnModel, roi: RoiPolicy | None, decide: Decide | None) -> PolicyDecide:
    if decide is not None:
        return without_sinks(decide)
    assert roi is not None
    return family_of(model.spec).decide(roi, model.spec)


def _gate_threshold(model: SdRpnModel, roi: RoiPolicy | None, decide: Decide | None) -> float | None:
    """Where the gate is not asked: None."""
    if model.gate is None or roi is None or decide is not None:
        return None
    return family_of(model.spec).policy(model.spec).gate_threshold if roi.gate_threshold is None else roi.gate_threshold


def _first_pass(
    model: SdRpnModel,
    prompt: PromptRows,
    picture: Image.Image,
    before: int,
    decide: PolicyDecide,
    gate_threshold: float | None,
) -> _FirstPass:
    """The gate first, then the map, then the crops."""
    rpn, spec, positions = model.rpn, model.spec.rpn, prompt.positions
    assert rpn is not None
    assert spec is not None
    tap = model.trunk(prompt.embeds, positions, deepstack=prompt.deepstack)
    hw = model.spec.vision.grid(picture.size).hw
    end = before + cell_count(hw)
    gate, logits = None, None
    if model.gate is not None and gate_threshold is not None:
        statistics = None
        if model.gate.is_probe:
            logits = _roi_logits(model, rpn(tap, positions)[0, :, before:end], hw)
            statistics = torch.from_numpy(map_statistics(logits))[None]
        gate = float(model.gate(tap, positions, statistics=statistics)[0])
        if not looks_again(gate_score(gate), gate_threshold):
            return _FirstPass(tap, gate)
    if logits is None:
        logits = _roi_logits(model, rpn(tap, positions)[0, :, before:end], hw)
    sinks = _array(rpn.sink_logits(tap, positions)[0, before:end]).reshape(hw) if spec.sink_query else None
    decision = decide(logits, picture.size, sinks)
    keep_source = None
    if decision.crops and 0 < spec.prune_above < cell_count(hw):
        seen = rpn.row_scores(tap, positions, end)[0, :, :, before:end].mean(dim=0).amax(dim=0)
        keep_source = family_of(model.spec).kept_source(model.spec, _array(seen))
    return _FirstPass(tap, gate, logits, sinks, decision, keep_source)


def _roi_logits(model: SdRpnModel, scores: Tensor, hw: tuple[int, int]) -> Float32:
    """Scores (H,h*w) -> (h,w)."""
    rpn = model.spec.rpn
    assert rpn is not None
    head_dim = model.spec.llm.head_dim
    return roi_logits_from_scores(_array(scores), hw, head_dim=head_dim, multi_head=rpn.multi_head, loss=rpn.loss)


def _generate(
    model: SdRpnModel, prompt: PromptRows, max_new_tokens: int, stop_ids: Collection[int]
) -> tuple[tuple[int, ...], Float32]:
    """Token ids and their rows of logits (n,V)."""
    trunk_cache, tail_cache = KvCache(), KvCache()
    token_ids: list[int] = []
    rows: list[Tensor] = []
    embeds, deepstack, start = prompt.embeds, prompt.deepstack, 0
    while len(token_ids) < max_new_tokens:
        positions = prompt.placed.rows(start, start + embeds.shape[1])
        tap = model.trunk(embeds, positions, trunk_cache, deepstack)
        rows.append(model.tail(tap, positions, tail_cache)[0])
        token_id = int(rows[-1].argmax())
        if token_id in stop_ids:
            break
        token_ids.append(token_id)
        start += embeds.shape[1]
        embeds, deepstack = model.embed(torch.tensor([[token_id]])), ()
    logits = torch.stack(rows) if rows else torch.empty(0, model.spec.llm.vocabulary)
    return tuple(token_ids), _array(logits)


def _array(tensor: Tensor) -> Float32:
    array: NDArray[Any] = tensor.float().numpy()
    return array
