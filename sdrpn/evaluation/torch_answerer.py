"""A checkpoint in PyTorch as an answerer: it supports every kind of second pass, including those from attention."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from sdrpn.errors import BadInput
from sdrpn.evaluation.layered import LayeredPrompt
from sdrpn.evaluation.looks import (
    Answered,
    AttentionLook,
    GivenLook,
    Judged,
    Look,
    RpnLook,
    TeacherLook,
    VicropLook,
    confidence_of,
    given_note,
    map_over_image,
    peak_xy_px,
    window_xy_px,
)
from sdrpn.evaluation.rpns import LoadedRpn
from sdrpn.evaluation.survey import HeadAttention
from sdrpn.evaluation.vicrop import relative_map, vicrop_box
from sdrpn.families.registry import family_of, prompt_of
from sdrpn.labels.attention import Rows, WatchHeads, require_heads, watch_answer
from sdrpn.labels.denoise import FOREGROUND, Sinks, denoise, rule_named, sinks_on
from sdrpn.labels.head_choice import Head, HeadChoice, by_layer
from sdrpn.method.gate import gate_refusal, gate_score, map_statistics
from sdrpn.method.grids import ImageGrid, cell_count
from sdrpn.method.roi import Crop, RoiDecision, decide_crops, roi_logits_from_scores
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import SdRpnModel
from sdrpn.model.looks import picture_look
from sdrpn.model.vision import LookTokens
from sdrpn.text.prompt import Prompt, decode_text

__all__ = ["TorchAnswerer"]

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

LONGEST_LABEL_ANSWER = 128  # the official code's limit, where no answer is requested
# Logits whose sigmoid is 0 and 1.
LABEL_LOGIT = 88.0


@dataclass(frozen=True, eq=False)
class _Found:
    """The crops that a look chose: see `Answered`."""

    crops: tuple[Crop, ...] = ()
    peak_xy_px: tuple[float, float] | None = None
    note: str | None = None
    map_over_image: Float32 | None = None
    judged: Judged | None = None


@dataclass(frozen=True, eq=False)
class _RpnMap:
    """The map of an RPN (h,w), before the sigmoid, and what it knows of sinks, in the same form."""

    logits: Float32
    sink_logits: Float32 | None


class _Watch:
    """Seconds from one call to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Since the call before."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before


class TorchAnswerer:
    """Answers questions with a model in PyTorch, with any kind of second pass."""

    def __init__(self, model: SdRpnModel, tokenizer: Tokenizer, rpns: Mapping[str, LoadedRpn] | None = None) -> None:
        """rpns: by name; "" is the model's own, unless another is given under that name."""
        self._model, self._tokenizer = model, tokenizer
        self._rpns = dict(rpns or {})
        if model.rpn is not None and model.spec.rpn is not None:
            self._rpns.setdefault("", LoadedRpn(model.rpn, model.spec.tap_layer, model.spec.rpn))

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self._model.spec

    @property
    def rpns(self) -> tuple[str, ...]:
        """Names of the RPNs that it has."""
        return tuple(self._rpns)

    @property
    def looks(self) -> frozenset[type[Any]]:
        """All kinds of `Look`."""
        return frozenset((GivenLook, RpnLook, AttentionLook, TeacherLook, VicropLook))

    @torch.inference_mode()
    def answer(self, picture: Image.Image, question: str, look: Look | None, max_new_tokens: int) -> Answered:
        """Answer greedily, or only choose crops. Raises ContextTooLong."""
        start = time.perf_counter()
        prompt, seen = self._prompt(question), picture_look(self._model, picture)
        grid, first = self._grid(picture), len(prompt.ids_before)
        layered = LayeredPrompt(self._model, picture, prompt, max_new_tokens, seen)
        found = self._found(layered, look, picture, prompt, seen, max_new_tokens)
        crops, about = found.crops, (found.note, found.map_over_image, found.judged)
        if max_new_tokens == 0:
            tokens = sum(crop.token_count(grid.crop_hw(crop.box_xyxy_px)) for crop in crops)
            return Answered("", crops, found.peak_xy_px, tokens, time.perf_counter() - start, *about)
        pixels = look.pixels if isinstance(look, GivenLook) else None
        keep = self._kept_source(layered, look, first, grid.hw) if crops else None
        stop_ids = self.spec.prompt.eos_token_ids
        token_ids, roi = layered.answer(crops, stop_ids, pixels=pixels, keep_source=keep)
        text = decode_text(self._tokenizer, token_ids).strip()
        return Answered(text, crops, found.peak_xy_px, roi, time.perf_counter() - start, *about)

    @torch.inference_mode()
    def decide(self, picture: Image.Image, question: str, look: RpnLook) -> RoiDecision:
        """Where it would look."""
        prompt = self._prompt(question)
        layered = LayeredPrompt(self._model, picture, prompt, 1)
        found = self._rpn_map(layered, look.rpn, len(prompt.ids_before), self._grid(picture).hw)
        return self._decision(look, found, picture)

    @torch.inference_mode()
    def attention(
        self, picture: Image.Image, question: str, heads: HeadChoice, rows: Rows, max_new_tokens: int
    ) -> HeadAttention | None:
        """The attention of some rows to the image; None where no token of the answer has a row."""
        watched = watch_answer(
            self._model,
            picture_look(self._model, picture),
            self._prompt(question),
            by_layer((*heads.grounding, *heads.sinks)),
            grid=self._grid(picture),
            rows=rows,
            max_new_tokens=max_new_tokens,
            stop_ids=self.spec.prompt.eos_token_ids,
        )
        if watched.row_count == 0:
            return None
        shown = self._shown_sinks(watched.attention, heads) if heads.sinks else None
        return HeadAttention(_mean_over(watched.attention, heads, heads.grounding), shown)

    @torch.inference_mode()
    def rpn_logits(self, picture: Image.Image, question: str, rpn: str) -> Float32:
        """The logits (h,w) of an RPN."""
        prompt = self._prompt(question)
        layered = LayeredPrompt(self._model, picture, prompt, 1)
        return self._rpn_map(layered, rpn, len(prompt.ids_before), self._grid(picture).hw).logits

    def require_heads(self, heads: HeadChoice) -> None:
        """Raise BadInput for heads that the model does not have."""
        require_heads(self.spec.llm, by_layer((*heads.grounding, *heads.sinks)))

    # Where the crops come from ----------------------------------------------------------------------------------------

    def _found(
        self,
        layered: LayeredPrompt,
        look: Look | None,
        picture: Image.Image,
        prompt: Prompt,
        seen: LookTokens,
        max_new_tokens: int,
    ) -> _Found:
        if look is None:
            return _Found()
        if isinstance(look, GivenLook):
            return _Found(look.crops, window_xy_px(look.crops), given_note(look.crops))
        if isinstance(look, VicropLook):
            crops = (Crop(self._vicrop_box(look, picture, prompt)),)
            return _Found(crops, window_xy_px(crops))
        if isinstance(look, RpnLook):
            return self._rpn_found(layered, look, picture, len(prompt.ids_before))
        if isinstance(look, AttentionLook):
            decision = self._attention_decision(layered, look, picture, len(prompt.ids_before))
        else:
            taught = self._teacher_decision(look, picture, prompt, seen, max_new_tokens or LONGEST_LABEL_ANSWER)
            if isinstance(taught, str):
                return _Found(note=taught)
            decision = taught
        peak = peak_xy_px(decision, picture.size, self.spec)
        return _Found(decision.crops, peak, decision.note, map_over_image(decision, look.policy))

    def _rpn_found(self, layered: LayeredPrompt, look: RpnLook, picture: Image.Image, first: int) -> _Found:
        """The gate first, or after the map where it is a probe of it; then the crops."""
        layered.look(self._rpns[look.rpn].tap_layer)
        hw, watch = self._grid(picture).hw, _Watch()
        known = self._rpn_map(layered, look.rpn, first, hw) if self._probes(look) else None
        map_s = watch.lap()
        score, refusal = self._gate(layered, look, known)
        gate_s = watch.lap()
        if refusal is not None:
            return _Found(note=refusal, judged=Judged(None, map_s, score, gate_s))
        decision = self._decision(look, known or self._rpn_map(layered, look.rpn, first, hw), picture)
        judged = Judged(confidence_of(decision, look.policy), map_s + watch.lap(), score, gate_s)
        peak = peak_xy_px(decision, picture.size, self.spec)
        return _Found(decision.crops, peak, decision.note, map_over_image(decision, look.policy), judged)

    def _probes(self, look: RpnLook) -> bool:
        return self._model.gate is not None and self._model.gate.is_probe and not look.rpn

    def _gate(self, layered: LayeredPrompt, look: RpnLook, known: _RpnMap | None) -> tuple[float | None, str | None]:
        """The score of the model's own gate, and why it ends with the first look; None where it is not asked.

        Args: known: for a probe
        """
        threshold = look.policy.gate_threshold
        if threshold is None:
            threshold = family_of(self.spec).policy(self.spec).gate_threshold
        if self._model.gate is None or look.rpn or threshold is None:
            return None, None
        tap, statistics = layered.look(self.spec.tap_layer), None
        if known is not None:
            statistics = torch.from_numpy(map_statistics(known.logits))[None].to(tap.device)
        score = gate_score(float(self._model.gate(tap, layered.positions, statistics=statistics)[0]))
        return score, gate_refusal(score, threshold)

    def _decision(self, look: RpnLook, found: _RpnMap, picture: Image.Image) -> RoiDecision:
        return family_of(self.spec).decide(look.policy, self.spec)(found.logits, picture.size, found.sink_logits)

    def _rpn_map(self, layered: LayeredPrompt, name: str, first: int, hw: tuple[int, int]) -> _RpnMap:
        rpn, span = self._rpns[name], _image_span(first, hw)
        tap, positions = layered.look(rpn.tap_layer), layered.positions
        scores = _array(rpn.module(tap, positions)[0, :, span])
        logits = roi_logits_from_scores(
            scores, hw, head_dim=self.spec.llm.head_dim, multi_head=rpn.spec.multi_head, loss=rpn.spec.loss
        )
        sinks = _array(rpn.module.sink_logits(tap, positions)[0, span]).reshape(hw) if rpn.spec.sink_query else None
        return _RpnMap(logits, sinks)

    def _kept_source(self, layered: LayeredPrompt, look: Look | None, first: int, hw: tuple[int, int]) -> Bool | None:
        """Which image tokens stay in the second pass (h*w,); None: all, as of a model that leaves none out."""
        rpn = self._rpns.get(look.rpn if isinstance(look, RpnLook) else "")
        if rpn is None or not 0 < rpn.spec.prune_above < cell_count(hw):
            return None
        span = _image_span(first, hw)
        scores = rpn.module.row_scores(layered.stream_at(rpn.tap_layer), layered.positions, span.stop)
        seen = scores[0, :, :, span].mean(dim=0).amax(dim=0)
        return family_of(self.spec).kept_source(self.spec, _array(seen))

    def _attention_decision(
        self, layered: LayeredPrompt, look: AttentionLook, picture: Image.Image, first: int
    ) -> RoiDecision:
        heads = by_layer((*look.heads.grounding, *look.heads.sinks))
        last_row = slice(-1, None)
        grid = self._grid(picture)
        with WatchHeads(layered.layers, heads, last_row, _image_span(first, grid.hw)) as watch:
            layered.look(max(heads) + 1)
        sinks = self._sinks(watch.means, look.heads, look.sinks, grid.hw)
        strength = np.where(sinks, np.float32(0), _mean_over(watch.means, look.heads, look.heads.grounding))
        return decide_crops(strength.reshape(grid.hw), grid, look.policy)

    def _teacher_decision(
        self, look: TeacherLook, picture: Image.Image, prompt: Prompt, seen: LookTokens, max_new_tokens: int
    ) -> RoiDecision | str:
        """The label as a decision, as if an RPN had reproduced it; or why the answer gives no label."""
        heads = by_layer((*look.heads.grounding, *look.heads.sinks))
        stop_ids = self.spec.prompt.eos_token_ids
        grid = self._grid(picture)
        watched = watch_answer(
            self._model, seen, prompt, heads, grid=grid, max_new_tokens=max_new_tokens, stop_ids=stop_ids
        )
        if watched.row_count == 0:
            return "nothing inserted: the model gave no answer that a label can be made from"
        grounding = _mean_over(watched.attention, look.heads, look.heads.grounding)
        sinks = self._sinks(watched.attention, look.heads, look.sinks, grid.hw)
        rule = rule_named(family_of(self.spec).label_rule)
        labels = denoise(grounding.reshape(grid.hw), sinks.reshape(grid.hw), rule)
        if not labels.usable:
            why = "the label covers too much of the picture" if labels.oversize else "the label has no foreground"
            return f"nothing inserted: {why}"
        logits = np.where(labels.cells == FOREGROUND, LABEL_LOGIT, -LABEL_LOGIT).astype(np.float32)
        return decide_crops(logits, grid, look.policy)

    def _sinks(
        self, attention: Mapping[int, Float32], heads: HeadChoice, sinks: Sinks | None, hw: tuple[int, int]
    ) -> Bool:
        """Sinks (C,): from the sink heads, or those known for the data."""
        if heads.sinks:
            return self._shown_sinks(attention, heads)
        if sinks is None:
            raise BadInput("neither known sinks nor sink heads are given; expected one of the two")
        return sinks_on(sinks, hw)

    def _shown_sinks(self, attention: Mapping[int, Float32], heads: HeadChoice) -> Bool:
        limit = family_of(self.spec).label_sink_limit
        shown: Bool = _mean_over(attention, heads, heads.sinks) >= limit
        return shown

    def _vicrop_box(self, look: VicropLook, picture: Image.Image, prompt: Prompt) -> tuple[int, int, int, int]:
        """ViCrop's box: two full prefills, each encoding the image, as in the published code."""
        maps = [
            self._layer_attention(picture, asked, look.layer) for asked in (prompt, self._prompt(look.general_question))
        ]
        grid, seen = self._grid(picture), family_of(self.spec).seen_picture(picture, self.spec.vision)
        relative = relative_map(*maps).reshape(grid.hw)
        x1, y1, x2, y2 = grid.box_cells_from_px((0, 0, *picture.size))
        left, top, right, bottom = grid.seen_box_px
        found = vicrop_box(relative[y1:y2, x1:x2], (right - left, bottom - top), max(seen.size))
        return found[0] + left, found[1] + top, found[2] + left, found[3] + top

    def _layer_attention(self, picture: Image.Image, prompt: Prompt, layer: int) -> Float32:
        """Attention (C,), mean over all heads of a layer; runs the whole model."""
        heads = {layer: range(self.spec.llm.heads)}
        grid = self._grid(picture)
        layered = LayeredPrompt(self._model, picture, prompt, 1)
        span = _image_span(len(prompt.ids_before), grid.hw)
        with WatchHeads(layered.layers, heads, slice(-1, None), span) as watch:
            hidden = layered.look(self.spec.llm.layers)
        self._model.tail.head(self._model.tail.norm(hidden[:, -1]))
        mean: Float32 = watch.means[layer].mean(axis=0)
        return mean

    # Tokens -----------------------------------------------------------------------------------------------------------

    def _prompt(self, question: str) -> Prompt:
        return prompt_of(self.spec, self._tokenizer, question)

    def _grid(self, picture: Image.Image) -> ImageGrid:
        return self.spec.vision.grid(picture.size)


def _image_span(first: int, hw: tuple[int, int]) -> slice:
    """The image's rows behind `first` others."""
    return slice(first, first + cell_count(hw))


def _mean_over(attention: Mapping[int, Float32], choice: HeadChoice, heads: Sequence[Head]) -> Float32:
    """Attention (C,), mean over some of the recorded heads of a choice."""
    places = by_layer((*choice.grounding, *choice.sinks))
    rows = [attention[layer][places[layer].index(head)] for layer, head in heads]
    mean: Float32 = np.mean(rows, axis=0, dtype=np.float32)
    return mean


def _array(tensor: Tensor) -> Float32:
    array: NDArray[Any] = tensor.float().cpu().numpy()
    return array
