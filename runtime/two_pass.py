"""The two passes up to the first token: look, crop where it matters, and prefill with exact prefix reuse.

Attention is causal, and the prefix (the tokens before the question) has the same positions in both passes and for
every question about the same image, so its cached rows stay valid:

    pass 1           trunk and RPN over prefix + question
    crop chosen      trunk over RoI tokens + question, tail over the stored prefix taps and the new ones
    no crop chosen   tail over the stored taps
    next question    the prefix is reused in all graphs
    look             as pass 1, and nothing above the tap; an answer to the same question goes on from there

Knows nothing about text or sampling, and keeps no state of a question itself.
"""

from __future__ import annotations

import collections.abc as abc

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.families.family import CropTokens, Layout, Positions
from sdrpn.families.registry import family_of, seen_of
from sdrpn.method.grids import ImageGrid, cell_count
from sdrpn.method.roi import Crop, RoiDecision, resize_features, roi_logits_from_scores, roi_map
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner
from sdrpn.runtime.decoder import Decoder, Rows, row_count
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.looks import Looks
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.prefix_store import PrefixStore
from sdrpn.runtime.regions import DroppedRegion, dropped_regions
from sdrpn.runtime.sequence import Glance, LookRequest, Prefill, QuestionRequest, Sequence, Work
from sdrpn.runtime.slots import Prefix, Seen, Slot

__all__ = ["TwoPass"]

FloatArray = npt.NDArray[np.float32]


class TwoPass:
    """Runs prefills on one decoder."""

    def __init__(
        self,
        spec: ModelSpec,
        max_context: int,
        backend: Backend,
        vision: Runner,
        decoder: Decoder,
        embedding: TokenEmbedding,
        prefixes: PrefixStore,
    ) -> None:
        self._spec, self.max_context = spec, max_context
        self._looks, self._family = Looks(spec, backend, vision), family_of(spec)
        self.fit = seen_of(spec)
        self._decoder, self._embedding, self._prefixes = decoder, embedding, prefixes

    def grid_of(self, picture: Picture) -> ImageGrid:
        """The cells that the model sees of a picture."""
        return self._spec.vision.grid(picture.size)

    def prefix_of(self, request: QuestionRequest, digest: str | None = None) -> Prefix:
        """What the question shares with others about the same picture.

        Args: digest: of the picture; None: its pixels are all read for it

        Raises: ContextTooLong where the tokens do not fit; BadInput where crops are asked for and there is no RPN.
        """
        if request.decide is not None and self._spec.rpn is None:
            advice = "nothing can look" if isinstance(request, LookRequest) else "pass roi=None"
            raise BadInput(f"this bundle has no RPN and answers as the plain model only: {advice}")
        self._embedding.require((*request.ids_before, *request.ids_after))
        cells = cell_count(self._spec.vision.grid(request.image.size).hw)
        rows = len(request.ids_before) + cells + len(request.ids_after)
        self._require_context(rows, 0, request.max_new_tokens)
        return Prefix(digest or request.image.digest(), cells, request.ids_before)

    def look(self, glance: Glance, slot: Slot) -> None:
        """The first pass in a slot, whose map ends the glance."""
        request = glance.request
        slot.positions = self._positions(request, ())
        self._first_pass(glance, slot, self._embedding.rows(request.ids_after))
        rows = glance.prefix.rows + len(request.ids_after)
        logits, decision = self._look(glance, slot, rows)
        if logits is None or decision is None:  # refused by prefix_of
            raise BadInput("a look needs an RPN and a policy")
        slot.seen = Seen(request.ids_after, rows, logits)
        glance.found = logits, decision

    def prefill(self, sequence: Sequence, slot: Slot) -> FloatArray:
        """Run both passes in a slot -> logits (V,) of the first token, a view that the next run overwrites.

        Raises: ContextTooLong if the crop's tokens do not fit
        """
        request, watch = sequence.request, sequence.watch
        prefix_rows = sequence.prefix.rows
        rows = prefix_rows + len(request.ids_after)
        after = self._embedding.rows(request.ids_after)
        before = dict(self._decoder.computed_rows)
        positions = slot.positions = self._positions(request, ())
        encoded = self._first_pass(sequence, slot, after)
        roi_logits, decision = self._look(sequence, slot, rows)
        crops = decision.crops if decision is not None else ()
        roi_tokens = 0
        if crops:
            roi = self._encode_crops(sequence, crops)
            encoded, roi_tokens = encoded + len(crops), sum(map(row_count, roi))
            self._require_context(rows, roi_tokens, request.max_new_tokens)
            positions = slot.positions = self._positions(request, crops)
            logits = self._second_pass(sequence, slot, prefix_rows, [*roi, after])
        else:
            with watch.stage("tail_prefill"):
                logits = self._decoder.run_tail(slot, slot.valid["tail"], rows)
        computed = {name: count - before[name] for name, count in self._decoder.computed_rows.items()}
        dropped: tuple[DroppedRegion, ...] = ()
        if decision is not None and roi_logits is not None:
            dropped = dropped_regions(decision, roi_map(roi_logits), self.grid_of(request.image))
        prefill = Prefill(rows + roi_tokens, roi_logits, decision, roi_tokens, encoded, computed, dropped)
        sequence.begin(slot, prefill, None if positions is None else positions.following)
        return logits

    def _positions(self, request: QuestionRequest, crops: abc.Sequence[Crop]) -> Positions | None:
        """The positions of a pass; None if they are the row numbers."""
        grid = self._spec.vision.grid(request.image.size)
        inserted = tuple(CropTokens(crop.grid_hw or grid.crop_hw(crop.box_xyxy_px), crop.keep_cells) for crop in crops)
        layout = Layout(len(request.ids_before), grid.hw, inserted, len(request.ids_after))
        return self._family.positions(self._spec, layout)

    def _first_pass(self, sequence: Work, slot: Slot, after: FloatArray) -> int:
        """Run the trunk over the missing rows of prefix + question; returns the number of encoded images."""
        request, watch, slots = sequence.request, sequence.watch, self._decoder.slots
        prefix = sequence.prefix
        rows, ahead = prefix.rows + len(after), request.max_new_tokens
        if not slot.holds(prefix):
            with watch.stage("trunk"):
                self._prefixes.exchange(slot, prefix, lambda: slots.reset(slot, rows, ahead))
        known = slot.holds(prefix)
        if slot.has_seen(prefix, request.ids_after):
            slots.reserve(slot, rows, ahead)
            return 0
        slot.prefix = None  # until the trunk is done, the slot has no valid prefix
        if known:
            with watch.stage("trunk"):
                slot.truncate(prefix.rows)
                slots.reserve(slot, rows, ahead)
                self._decoder.run_trunk(slot, after, prefix.rows)
        else:
            embeds = self._embed_all(sequence, after)
            with watch.stage("trunk"):
                self._decoder.run_trunk(slot, embeds, 0)
        slot.prefix = prefix
        return 0 if known else 1

    def _embed_all(self, sequence: Work, after: FloatArray) -> list[Rows]:
        """Tokens before the image, the image, tokens after it."""
        request, watch = sequence.request, sequence.watch
        self._decoder.pace.part("vision", 1, least=1)
        with self._decoder.pace.measured("vision", 1):
            image = self._looks.first(request.image, watch.stage)
        return [self._embedding.rows(request.ids_before), image, after]

    def _look(self, sequence: Work, slot: Slot, rows: int) -> tuple[FloatArray, RoiDecision] | tuple[None, None]:
        """The RoI map of the question, and the chosen crops."""
        request, watch = sequence.request, sequence.watch
        if request.decide is None or self._spec.rpn is None:
            return None, None
        seen = slot.seen  # of this question: rows behind another one's were dropped
        if seen is not None:
            logits = seen.roi_logits
        else:
            with watch.stage("rpn"):
                scores = self._decoder.run_rpn(slot, rows)
            with watch.stage("roi_decode"):
                logits = self._roi_logits(request, scores[:, len(request.ids_before) : sequence.prefix.rows])
        with watch.stage("roi_decode"):
            return logits, request.decide(logits, request.image.size)

    def _roi_logits(self, request: QuestionRequest, scores: FloatArray) -> FloatArray:
        """scores (H,h*w) -> (h,w)."""
        rpn = self._spec.rpn
        assert rpn is not None
        return roi_logits_from_scores(
            scores,
            self._spec.vision.grid(request.image.size).hw,
            head_dim=self._spec.llm.head_dim,
            multi_head=rpn.multi_head,
            loss=rpn.loss,
        )

    def _encode_crops(self, sequence: Sequence, crops: abc.Sequence[Crop]) -> list[Rows]:
        """The kept tokens of every crop, in order."""
        image, watch = sequence.request.image, sequence.watch
        grid = self._spec.vision.grid(image.size)
        self._decoder.pace.part("vision", len(crops), least=len(crops))
        with self._decoder.pace.measured("vision", len(crops)):
            features = self._looks.crops(image, [crop.box_xyxy_px for crop in crops], watch.stage)
        with watch.stage("crop_vision"):
            return [
                piece
                for tokens, crop in zip(features, crops, strict=True)
                for piece in self._kept(tokens, crop, grid.crop_hw(crop.box_xyxy_px))
            ]

    def _kept(self, features: Buffer, crop: Crop, hw: tuple[int, int]) -> abc.Sequence[Rows]:
        """features (1,h*w,D) -> the cells that the crop keeps, or all resized to another grid."""
        if crop.keep_cells is not None:
            return [features.rows(start, stop) for start, stop in _runs(crop.keep_cells.reshape(-1))]
        if crop.grid_hw is not None:
            resized = resize_features(features.read().reshape(*hw, -1), crop.grid_hw)
            return [resized.reshape(-1, features.shape[-1])]
        return [features]

    def _second_pass(self, sequence: Sequence, slot: Slot, prefix_rows: int, embeds: abc.Sequence[Rows]) -> FloatArray:
        """Run RoI tokens and question after the stored prefix -> logits (V,)."""
        decoder, watch, stop = self._decoder, sequence.watch, prefix_rows + sum(map(row_count, embeds))
        with watch.stage("tail_prefill"):
            # Before the caches grow: the cost of attention depends on their length, and the prefix needs no more than
            # this.
            if slot.valid["tail"] < prefix_rows:
                decoder.run_tail(slot, slot.valid["tail"], prefix_rows)
        with watch.stage("crop_trunk"):
            slot.truncate(prefix_rows)
            decoder.slots.reserve(slot, stop, sequence.request.max_new_tokens)
            decoder.run_trunk(slot, embeds, prefix_rows)
        with watch.stage("tail_prefill"):
            return decoder.run_tail(slot, prefix_rows, stop)

    def _require_context(self, prompt: int, roi: int, new: int) -> None:
        if prompt + roi + new <= self.max_context:
            return
        crop = f" + {roi} RoI tokens" if roi else ""
        advice = "shorten the question"
        if new:
            without = "answer without the crop (roi=None), " if roi else ""
            advice += f", {without}or lower max_new_tokens"
        raise ContextTooLong(
            f"{prompt} prompt tokens{crop} + {new} new tokens need {prompt + roi + new} positions, the bundle has "
            f"{self.max_context}; {advice}"
        )


def _runs(kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each run of kept cells."""
    steps = np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))
