"""Two passes, slow and obvious: what every faster path has to equal.

Pass 1 asks the gate whether to look again, then the RPN where. Pass 2 starts again from the embeddings, with the crop's
tokens inserted as the scheme says; only its decoding steps use a KV cache. Greedy.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sdrpn.families.family import Positions
from sdrpn.families.qwen.insertion import SecondPass, first_positions, kept_source_cells, second_pass
from sdrpn.families.qwen.positions import AXES, axes_of
from sdrpn.families.qwen.sinks import border_kept, not_sinks
from sdrpn.families.qwen.torch_model import QwenModel
from sdrpn.families.qwen.torch_vision import Look
from sdrpn.families.qwen.vision_spec import QwenVision, qwen_vision_of
from sdrpn.families.qwen.zoom import decide_zoom
from sdrpn.images.patches import crop_patches, picture_patches
from sdrpn.method.gate import gate_score, looks_again
from sdrpn.method.grids import Box, cell_count
from sdrpn.method.roi import RoiDecision, roi_logits_from_scores
from sdrpn.method.spec import Scheme
from sdrpn.model.layers import KvCache

__all__ = ["QwenAnswer", "Zoom", "reference_answer"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Zoom:
    """When and where to look again. gate_threshold: a score below it ends with the first look; below 0: never."""

    threshold: float
    gate_threshold: float = -1.0


@dataclass(frozen=True, eq=False)
class QwenAnswer:
    """An answer and everything on the way to it. S tokens of pass 1, s of pass 2, n generated."""

    token_ids: tuple[int, ...]  # without the stop id
    step_logits: Float32  # (n,V): the row that each token was chosen from; one more if a stop id ended the answer
    look: Look  # of the picture
    crop_look: Look | None
    tap: Float32 | None  # (S,D) of pass 1; None for a plain answer, as are the next four
    gate_logit: float | None  # None as well where there is no gate
    roi_logits: Float32 | None  # (h,w); None as well where the gate ended it
    kept: npt.NDArray[np.bool_] | None  # (h,w), False for sinks
    decision: RoiDecision | None
    second: SecondPass | None  # None where nothing was inserted


@torch.inference_mode()
def reference_answer(
    model: QwenModel,
    picture: Image.Image,
    ids_before: Sequence[int],
    ids_after: Sequence[int],
    *,
    zoom: Zoom | None,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    vision: QwenVision | None = None,
) -> QwenAnswer:
    """Answer by token ids.

    Args:
        picture: upright, RGB
        ids_before, ids_after: the prompt on either side of the image's tokens
        zoom: None, or a model without an RPN: a plain answer
        vision: the model's own with another budget, see `with_image_tokens`
    """
    run = _Run(model, picture, ids_before, ids_after, vision or qwen_vision_of(model.spec))
    return run.answer(zoom, max_new_tokens, stop_ids)


class _Run:
    """One question."""

    def __init__(
        self, model: QwenModel, picture: Image.Image, before: Sequence[int], after: Sequence[int], vision: QwenVision
    ) -> None:
        self.model, self.picture, self.vision = model, picture, vision
        self.before, self.after = list(before), list(after)
        self.grid = vision.grid(picture.size)
        self.look = self._looked(picture_patches(picture, vision), self.grid.hw)

    def answer(self, zoom: Zoom | None, max_new_tokens: int, stop_ids: Collection[int]) -> QwenAnswer:
        """See `reference_answer`."""
        count = cell_count(self.grid.hw)
        first = first_positions(len(self.before), self.grid.hw, len(self.after))
        image = torch.zeros(len(self.before) + count + len(self.after), dtype=torch.bool)
        image[len(self.before) : len(self.before) + count] = True
        ids = torch.tensor([*self.before, *[0] * count, *self.after])
        embeds, deepstack = self._inputs(ids, image, [self.look])
        tap, gate, logits, kept, decision, second, crop = None, None, None, None, None, None, None
        positions = first
        if zoom is not None and self.model.rpn is not None:
            turns = self._turns(first.rows)
            tap = self.model.trunk(embeds, turns, deepstack=deepstack)
            gate = None if self.model.gate is None else float(self.model.gate(tap, turns)[0])
            if gate is None or looks_again(gate_score(gate), zoom.gate_threshold):
                logits, kept = self._map(tap, turns)
                decision = decide_zoom(logits, kept, self.grid, zoom.threshold, self._scheme)
                second = self._second(decision, tap, turns)
        if second is not None and decision is not None:
            box = decision.crops[0].box_xyxy_px
            crop = self._looked(crop_patches(self.picture, box, self.vision), self.grid.crop_hw(box))
            embeds, deepstack = self._inputs(
                torch.from_numpy(second.token_ids), torch.from_numpy(second.is_image), [self.look, crop]
            )
            kept_rows = torch.from_numpy(second.kept)
            embeds, deepstack = embeds[:, kept_rows], [feature[:, kept_rows] for feature in deepstack]
            positions = Positions(second.kept_rows, second.positions.following)
        token_ids, step_logits = self._generated(embeds, deepstack, positions, max_new_tokens, stop_ids)
        return QwenAnswer(
            token_ids=token_ids,
            step_logits=step_logits,
            look=self.look,
            crop_look=crop,
            tap=None if tap is None else _array(tap[0]),
            gate_logit=gate,
            roi_logits=logits,
            kept=kept,
            decision=decision,
            second=second,
        )

    @property
    def _scheme(self) -> Scheme:
        assert self.model.spec.rpn is not None
        return self.model.spec.rpn.scheme

    def _looked(self, patches: Float32, hw: tuple[int, int]) -> Look:
        look: Look = self.model.vision(torch.from_numpy(patches).to(self.model.embed.weight.dtype), hw)
        return look

    def _turns(self, rows: npt.NDArray[np.float32 | np.int64]) -> Tensor:
        """Positions (3,S) as every pair of channels has them: (1,S,d/2)."""
        return torch.from_numpy(rows[axes_of(self.model.spec)].T.astype(np.float32))[None]

    def _inputs(self, ids: Tensor, image: Tensor, looks: Sequence[Look]) -> tuple[Tensor, list[Tensor]]:
        """Embeddings (1,S,D) with the looks' tokens in place, and as many dense features for the first layers."""
        embeds = self.model.embed(ids.where(~image, torch.zeros_like(ids)))
        embeds[image] = torch.cat([look.embeds for look in looks])
        deepstack = []
        for features in zip(*(look.deepstack for look in looks), strict=True):
            dense = torch.zeros_like(embeds)
            dense[image] = torch.cat(features)
            deepstack.append(dense[None])
        return embeds[None], deepstack

    def _map(self, tap: Tensor, turns: Tensor) -> tuple[Float32, npt.NDArray[np.bool_]]:
        """RoI logits (h,w), and which cells are no sinks."""
        model, hw = self.model, self.grid.hw
        assert model.rpn is not None
        assert model.spec.rpn is not None
        cells = slice(len(self.before), len(self.before) + cell_count(hw))
        scores = _array(model.rpn(tap, turns)[0, :, cells])
        logits = roi_logits_from_scores(scores, hw, head_dim=model.spec.llm.head_dim, loss=model.spec.rpn.loss)
        if not model.spec.rpn.sink_query:
            return logits, border_kept(hw, self._scheme)
        return logits, not_sinks(_array(model.rpn.sink_logits(tap, turns)[0, cells]).reshape(hw))

    def _second(self, decision: RoiDecision, tap: Tensor, turns: Tensor) -> SecondPass | None:
        if not decision.crops:
            return None
        model, crop = self.model, decision.crops[0]
        assert model.rpn is not None
        assert model.spec.rpn is not None
        x1, y1, x2, y2 = (int(edge) for edge in decision.boxes_cells[0])
        box: Box = x1, y1, x2, y2
        keep_source = None
        if self._scheme == "sd-rpn":
            first = len(self.before) + cell_count(self.grid.hw)
            scores = model.rpn.row_scores(tap, turns, first)[0, :, :, len(self.before) : first]  # (H,rows,N)
            keep_source = kept_source_cells(_array(scores.mean(dim=0)))
        return second_pass(
            self._scheme,
            self.before,
            self.grid.hw,
            self.after,
            self.grid.crop_hw(crop.box_xyxy_px),
            image_id=model.spec.prompt.image_token_id or 0,
            source_box_cells=box if model.spec.rpn.reuse_positions else None,
            keep_cells=crop.keep_cells,
            keep_source=keep_source,
        )

    def _generated(
        self,
        embeds: Tensor,
        deepstack: Sequence[Tensor],
        positions: Positions,
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> tuple[tuple[int, ...], Float32]:
        """Token ids, and the logits (n,V) that they were chosen from."""
        model, trunk_cache, tail_cache = self.model, KvCache(), KvCache()
        token_ids: list[int] = []
        found: list[Tensor] = []
        turns = self._turns(positions.rows)
        while len(token_ids) < max_new_tokens:
            tap = model.trunk(embeds, turns, trunk_cache, deepstack)
            found.append(model.tail(tap, turns, tail_cache)[0])
            token_id = int(found[-1].argmax())
            if token_id in stop_ids:
                break
            turns = self._turns(np.full((AXES, 1), positions.following + len(token_ids), np.float32))
            token_ids.append(token_id)
            embeds, deepstack = model.embed(torch.tensor([[token_id]])), ()
        logits = torch.stack(found) if found else torch.empty(0, model.spec.llm.vocabulary)
        return tuple(token_ids), _array(logits)


def _array(tensor: Tensor) -> Float32:
    array: Float32 = tensor.float().numpy()
    return array
