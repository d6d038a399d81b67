"""The two passes up to the first token: look, crop where it matters, and prefill with exact prefix reuse.

Attention is causal, and the prefix (the tokens before the question) has the same positions in both passes and for
every question about the same image, so its cached rows stay valid:

    pass 1           trunk, gate and RPN over prefix + question
    crop chosen      trunk over RoI tokens + question, tail over the stored prefix taps and the new ones
    image pruned     the same from the first image token on that the second pass goes without
    no crop chosen   tail over the stored taps
    next question    the prefix is reused in all graphs
    look             as pass 1, and nothing above the tap; an answer to the same question goes on from there

Knows nothing about text or sampling, and keeps no state of a question itself.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.families.family import CropTokens, Layout, Positions
from sdrpn.families.registry import family_of, seen_of
from sdrpn.method.gate import asks_gate, gate_refusal, gate_score, map_statistics
from sdrpn.method.roi import Crop, resize_features, roi_logits_from_scores, roi_map
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.backends.runner import Backend, Runner
from sdrpn.runtime.decoder import Decoder, ImageRows, Rows, row_count
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.looks import Looks
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.prefix_store import PrefixStore
from sdrpn.runtime.regions import DroppedRegion, dropped_regions
from sdrpn.runtime.sequence import Found, Glance, LookRequest, Prefill, QuestionRequest, Sequence, Work
from sdrpn.runtime.slots import Prefix, RoiScores, Seen, Slot

__all__ = ["TwoPass"]

FloatArray = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Insertion:
    """The rows of a second pass that the first did not have, or had in other places."""

    start: int  # the first of them
    pieces: abc.Sequence[Rows]
    roi_tokens: int
    encoded: int  # looks
    keep_source: Bool | None  # (h*w,) None: all stay

    @property
    def stop(self) -> int:
        """All rows of the pass."""
        return self.start + sum(map(row_count, self.pieces))

    @property
    def pruned(self) -> int:
        """Image tokens that are left out."""
        return 0 if self.keep_source is None else int(np.count_nonzero(~self.keep_source))


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

    def prefix_of(self, request: QuestionRequest, digest: str | None = None) -> Prefix:
        """What the question shares with others about the same picture.

        Args: digest: of the picture; None: its pixels are all read for it

        Raises: ContextTooLong where the tokens do not fit; BadInput where crops are asked for and there is no RPN.
        """
        if request.plan.decide is not None and self._spec.rpn is None:
            advice = "nothing can look" if isinstance(request, LookRequest) else "pass roi=None"
            raise BadInput(f"this bundle has no RPN and answers as the plain model only: {advice}")
        self._embedding.require(request.text_ids)
        # Refused before the pixels are read, which takes long.
        found = Prefix("", request.image_hw, request.ids_before, request.plan.vision)
        self._require_context(request.rows, 0, request.max_new_tokens)
        if request.image is None:
            return found
        return dataclasses.replace(found, digest=digest or request.image.digest())

    def kept_cells(self, scores: RoiScores) -> Bool | None:
        """(h,w) The cells that may become regions, False for sinks; None: all."""
        return self._family.kept_cells(self._spec, scores.roi_logits.shape, scores.sink_logits)

    def look(self, glance: Glance, slot: Slot) -> None:
        """The first pass in a slot, whose map ends the glance."""
        request = glance.request
        slot.positions = self._positions(request)
        self._first_pass(glance, slot)
        rows = request.rows
        found = self._found(glance, slot, rows, always_map=True)
        if found.scores is None:  # refused by prefix_of
            raise BadInput("a look needs an RPN and a policy")
        slot.seen = Seen(request.ids_after, rows, found.scores, found.gate_score)
        glance.found = found

    def prefill(self, sequence: Sequence, slot: Slot) -> FloatArray:
        """Run both passes in a slot -> logits (V,) of the first token, a view that the next run overwrites.

        Raises: ContextTooLong if the crop's tokens do not fit
        """
        request, watch = sequence.request, sequence.watch
        prompt = request.rows
        before = dict(self._decoder.computed_rows)
        positions = slot.positions = self._positions(request)
        encoded, image = self._first_pass(sequence, slot)
        found = self._found(sequence, slot, prompt)
        rows, inserted = prompt, None
        if found.crops:
            inserted = self._insertion(sequence, slot, found, image)
            encoded, rows = encoded + inserted.encoded, inserted.stop
            kept = prompt - inserted.pruned
            self._require_context(kept, rows - kept, request.max_new_tokens)
            positions = slot.positions = self._positions(request, found.crops, inserted.keep_source)
            logits = self._second_pass(sequence, slot, inserted)
        else:
            with watch.stage("tail_prefill"):
                logits = self._decoder.run_tail(slot, slot.valid["tail"], rows)
        computed = {name: count - before[name] for name, count in self._decoder.computed_rows.items()}
        dropped: tuple[DroppedRegion, ...] = ()
        if found.decision is not None and found.roi_logits is not None:
            dropped = dropped_regions(found.decision, roi_map(found.roi_logits), request.grid)
        prefill = Prefill(
            tokens=rows,
            prompt_tokens=prompt,
            found=found,
            roi_tokens=inserted.roi_tokens if inserted is not None else 0,
            again=inserted.stop - inserted.start if inserted is not None else 0,
            images_encoded=encoded,
            rows=computed,
            dropped=dropped,
            kept_source=inserted.keep_source if inserted is not None else None,
        )
        sequence.begin(slot, prefill, None if positions is None else positions.following)
        return logits

    def _positions(
        self, request: QuestionRequest, crops: abc.Sequence[Crop] = (), keep_source: Bool | None = None
    ) -> Positions | None:
        """The positions of a pass; None if they are the row numbers."""
        if request.image is None or request.further:
            return self._family.positions_of_spans(request.spans)
        grid = request.grid
        inserted = tuple(CropTokens.of(crop, grid) for crop in crops)
        layout = Layout(len(request.ids_before), grid.hw, inserted, len(request.ids_after), keep_source)
        return self._family.positions(self._spec, layout)

    def _first_pass(self, sequence: Work, slot: Slot) -> tuple[int, ImageRows | None]:
        """Run the trunk over the missing rows of prefix + question.

        Returns: the number of encoded images, and the image's rows if a second pass may need them again
        """
        request, watch, slots = sequence.request, sequence.watch, self._decoder.slots
        prefix = sequence.prefix
        rows, ahead = request.rows, request.max_new_tokens
        if not slot.holds(prefix):
            with watch.stage("trunk"):
                self._prefixes.exchange(slot, prefix, lambda: slots.reset(slot, rows, ahead))
        known = slot.holds(prefix)
        if slot.has_seen(prefix, request.ids_after) and not request.further:
            slots.reserve(slot, rows, ahead)
            return 0, None
        after = self._after_image(sequence)
        slot.prefix = None  # until the trunk is done, the slot has no valid prefix
        image: ImageRows | None = None
        if known:
            with watch.stage("trunk"):
                slot.truncate(prefix.rows)
                slots.reserve(slot, rows, ahead)
                self._decoder.run_trunk(slot, after, prefix.rows)
        else:
            image = None if request.image is None else self._first_look(sequence, request.image)
            before = [self._embedding.rows(request.ids_before)] if request.ids_before else []
            with watch.stage("trunk"):
                self._decoder.run_trunk(slot, [*before, *([] if image is None else [image]), *after], 0)
        slot.prefix = prefix
        encoded = len(request.further) + (0 if image is None else 1)
        return encoded, image if self._may_prune(sequence) else None

    def _after_image(self, work: Work) -> list[Rows]:
        """What comes after the first image: texts, and further images between them."""
        rows: list[Rows] = [self._embedding.rows(work.request.ids_after)]
        for shown in work.request.further:
            rows += [self._first_look(work, shown.image), self._embedding.rows(shown.ids_after)]
        return [piece for piece in rows if row_count(piece)]

    def _first_look(self, work: Work, picture: Picture) -> ImageRows:
        """A picture's image tokens."""
        pace = self._decoder.pace
        pace.part("vision", 1, least=1)
        with pace.measured("vision", 1):
            return self._looks.first(picture, work.request.plan.vision, work.watch.stage)

    def _may_prune(self, work: Work) -> bool:
        """Whether the image has so many tokens that the second pass may go without some."""
        rpn = self._spec.rpn
        return rpn is not None and 0 < rpn.prune_above < work.prefix.image_tokens

    def _found(self, work: Work, slot: Slot, rows: int, *, always_map: bool = False) -> Found:
        """What the question's first look leads to: the gate first, then the map, then the crops.

        Args: always_map: also where the gate says that the first look is enough
        """
        request, watch = work.request, work.watch
        if request.plan.decide is None or self._spec.rpn is None:
            return Found(note=request.plan.note)
        # Of this question: rows behind another one's were dropped.
        scores = slot.seen.scores if slot.seen is not None else None
        threshold = request.plan.gate_threshold
        if scores is None and self._spec.rpn.gate_probe and threshold is not None and threshold <= 1:
            scores = self._scores(work, slot, rows)
        score, refusal = self._gate(work, slot, rows, scores)
        if refusal is not None and not always_map:
            return Found(gate_score=score, note=refusal)
        scores = scores or self._scores(work, slot, rows)
        with watch.stage("roi_decode"):
            decision = request.plan.decide(scores.roi_logits, request.picture.size, scores.sink_logits)
        if refusal is not None:
            decision = dataclasses.replace(decision, crops=(), note=refusal)
        return Found(scores, decision, score, decision.note)

    def _gate(self, work: Work, slot: Slot, rows: int, scores: RoiScores | None) -> tuple[float | None, str | None]:
        """The gate's score, and why it ends with the first look; None where it is not asked, or does not."""
        rpn, threshold = self._spec.rpn, work.request.plan.gate_threshold
        if threshold is None or rpn is None or not rpn.has_gate:
            return None, None
        score = slot.seen.gate_score if slot.seen is not None else None
        can_ask = scores is not None or not rpn.gate_probe  # a probe knows the map
        if score is None and can_ask and (asks_gate(threshold) or work.keep_trace):
            with work.watch.stage("gate"):
                if rpn.gate_probe and scores is not None:
                    score = gate_score(self._decoder.run_probe(slot, rows, map_statistics(scores.roi_logits)))
                else:
                    score = gate_score(self._decoder.run_gate(slot, rows))
        return score, gate_refusal(score, threshold)

    def _scores(self, work: Work, slot: Slot, rows: int) -> RoiScores:
        """What the RPN says of the question."""
        request, watch = work.request, work.watch
        hw, cells = work.prefix.image_hw, slice(len(request.ids_before), work.prefix.rows)
        rpn = self._spec.rpn
        assert rpn is not None
        with watch.stage("rpn"):
            found = self._decoder.run_rpn(slot, rows, work.prefix.rows if self._may_prune(work) else None)
        with watch.stage("roi_decode"):
            logits = roi_logits_from_scores(
                found.scores[:, cells],
                hw,
                head_dim=self._spec.llm.head_dim,
                multi_head=rpn.multi_head,
                loss=rpn.loss,
            )
        sinks, seen = found.sink_logits, found.seen_logits
        return RoiScores(
            logits, None if sinks is None else sinks[cells].reshape(hw), None if seen is None else seen[cells]
        )

    def _insertion(self, sequence: Sequence, slot: Slot, found: Found, image: ImageRows | None) -> _Insertion:
        """Encode the crops, and put what surrounds them in its place. `image`: what is known of the picture's rows."""
        request, prefix = sequence.request, sequence.prefix
        crops = self._encode_crops(sequence, found.crops)
        around = self._family.around_crop(self._spec, request.ids_before, request.ids_after)
        leading, trailing = (self._embedding.rows(ids) for ids in (around.leading, around.trailing))
        pieces: list[Rows] = [piece for crop in crops for piece in (leading, *crop, trailing) if row_count(piece)]
        pieces.append(self._embedding.rows(request.ids_after))
        roi_tokens, encoded = sum(row_count(piece) for crop in crops for piece in crop), len(crops)
        keep = None
        if found.scores is not None and found.scores.seen_logits is not None:
            keep = self._family.kept_source(self._spec, found.scores.seen_logits)
        if keep is None or keep.all():
            return _Insertion(prefix.rows, pieces, roi_tokens, encoded, None)
        if image is None:
            image, encoded = self._first_look(sequence, request.picture), encoded + 1
        first = int(keep.argmin())  # of those that are left out
        kept = [image.rows(first + start, first + stop) for start, stop in _runs(keep[first:])]
        return _Insertion(len(request.ids_before) + first, [*kept, *pieces], roi_tokens, encoded, keep)

    def _encode_crops(self, sequence: Sequence, crops: abc.Sequence[Crop]) -> list[abc.Sequence[Rows]]:
        """The kept tokens of every crop, in order."""
        request, watch = sequence.request, sequence.watch
        grid, boxes = request.grid, [crop.box_xyxy_px for crop in crops]
        self._decoder.pace.part("vision", len(crops), least=len(crops))
        with self._decoder.pace.measured("vision", len(crops)):
            features = self._looks.crops(request.picture, boxes, request.plan.vision, watch.stage)
        with watch.stage("crop_vision"):
            return [
                self._kept(tokens, crop, grid.crop_hw(crop.box_xyxy_px))
                for tokens, crop in zip(features, crops, strict=True)
            ]

    def _kept(self, features: ImageRows, crop: Crop, hw: tuple[int, int]) -> abc.Sequence[Rows]:
        """features (1,h*w,D) -> the cells that the crop keeps, or all resized to another grid."""
        if crop.keep_cells is not None:
            return [features.rows(start, stop) for start, stop in _runs(crop.keep_cells.reshape(-1))]
        if crop.grid_hw is not None:
            resized = resize_features(features.embeds.read().reshape(*hw, -1), crop.grid_hw)
            return [resized.reshape(-1, features.embeds.shape[-1])]
        return [features]

    def _second_pass(self, sequence: Sequence, slot: Slot, inserted: _Insertion) -> FloatArray:
        """Run the inserted rows after those of the first pass that stay -> logits (V,)."""
        decoder, watch, start = self._decoder, sequence.watch, inserted.start
        with watch.stage("tail_prefill"):
            # Before the caches grow: the cost of attention depends on their length, and the prefix needs no more than
            # this.
            if slot.valid["tail"] < start:
                decoder.run_tail(slot, slot.valid["tail"], start)
        with watch.stage("crop_trunk"):
            if start < sequence.prefix.rows:  # later questions look for all of it
                self._prefixes.keep(slot)
                slot.prefix = None
            slot.truncate(start)
            decoder.slots.reserve(slot, inserted.stop, sequence.request.max_new_tokens)
            decoder.run_trunk(slot, inserted.pieces, start)
        with watch.stage("tail_prefill"):
            return decoder.run_tail(slot, start, inserted.stop)

    def _require_context(self, prompt: int, roi: int, new: int) -> None:
        if prompt + roi + new <= self.max_context:
            return
        crop = f" + {roi} RoI tokens" if roi else ""
        advice = "shorten the question"
        options: tuple[str, ...] = ()
        if new:
            without = "answer without the crop (roi=None), " if roi else ""
            advice += f", {without}or lower max_new_tokens"
            options = ("no_roi", "max_new_tokens") if roi else ("max_new_tokens",)
        raise ContextTooLong(
            f"{prompt} prompt tokens{crop} + {new} new tokens need {prompt + roi + new} positions, the bundle has "
            f"{self.max_context}; {advice}",
            options=options,
        )


def _runs(kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of each run of kept cells."""
    steps = np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))
