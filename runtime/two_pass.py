"""The two passes up to the first token: look, crop where it matters, and prefill with exact prefix reuse.

Attention is causal and the prefix (the tokens before the question) keeps its positions in both passes and for
every question about the same image, so whatever a graph computed for it stays true:

    pass 1           trunk and RPN over prefix + question
    crop chosen      trunk over RoI tokens + question, tail over the stored prefix taps and the new ones
    no crop chosen   tail over the stored taps
    next question    the prefix costs nothing at any depth

Knows nothing about text or sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput, ContextTooLong
from sdrpn.method.roi import Crop, Decide, RoiDecision, resize_features, roi_logits_from_scores
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime.answer import Stopwatch
from sdrpn.runtime.backends.runner import Backend, Buffer, Runner
from sdrpn.runtime.decoder import Decoder, Rows, row_count
from sdrpn.runtime.embedding import TokenEmbedding
from sdrpn.runtime.pictures.picture import Picture

__all__ = ["Prefill", "Request", "TwoPass"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """One question about one picture."""

    image: Picture
    ids_before: tuple[int, ...]  # before the image
    ids_after: tuple[int, ...]  # after it: the question
    decide: Decide | None  # None: plain LLaVA
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not self.ids_after:
            raise BadInput("no token follows the image; expected at least one, the question")
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < 1:
            raise BadInput(f"max_new_tokens is {self.max_new_tokens!r}; expected a whole number of at least 1")


@dataclass(frozen=True)
class Prefill:
    """Everything up to the first token."""

    logits: FloatArray  # (V,) for the first token
    position: int  # of the first token
    roi_logits: FloatArray | None  # (G, G)
    decision: RoiDecision | None
    roi_tokens: int
    images_encoded: int
    rows: dict[str, int]  # computed by each decoder graph


class TwoPass:
    """Runs prefills on one decoder and remembers the prefix of the last one."""

    def __init__(
        self,
        spec: ModelSpec,
        max_context: int,
        backend: Backend,
        vision: Runner,
        decoder: Decoder,
        embedding: TokenEmbedding,
    ) -> None:
        self._spec, self._max_context = spec, max_context
        self._backend, self._vision = backend, vision
        self._decoder, self._embedding = decoder, embedding
        self._prefix: tuple[str, tuple[int, ...]] | None = None

    def prefill(self, request: Request, watch: Stopwatch) -> Prefill:
        """Both passes.

        Raises: ContextTooLong where the tokens, the crop's included, do not fit; BadInput where crops are asked for
            and there is no RPN.
        """
        if request.decide is not None and self._spec.rpn is None:
            raise BadInput("this bundle has no RPN and answers as plain LLaVA only: pass roi=None (--no-roi)")
        prefix_rows = len(request.ids_before) + self._spec.vision.image_tokens
        rows = prefix_rows + len(request.ids_after)
        self._require_context(rows, 0, request.max_new_tokens)
        after = self._embedding.rows(request.ids_after)
        before = dict(self._decoder.computed_rows)
        encoded = self._first_pass(request, after, watch)
        roi_logits, decision = self._look(request, rows, watch)
        crops = decision.crops if decision is not None else ()
        roi_tokens = 0
        if crops:
            roi = self._encode_crops(request.image, crops, watch)
            encoded, roi_tokens = encoded + len(crops), sum(map(row_count, roi))
            self._require_context(rows, roi_tokens, request.max_new_tokens)
            logits = self._second_pass(prefix_rows, [*roi, after], request.max_new_tokens, watch)
        else:
            with watch.stage("tail_prefill"):
                logits = self._decoder.run_tail(self._decoder.valid["tail"], rows)
        computed = {name: count - before[name] for name, count in self._decoder.computed_rows.items()}
        return Prefill(logits, rows + roi_tokens, roi_logits, decision, roi_tokens, encoded, computed)

    def forget_prefix(self) -> None:
        """Compute the next question's prefix anew, whatever it is."""
        self._prefix = None

    def _first_pass(self, request: Request, after: FloatArray, watch: Stopwatch) -> int:
        """Trunk over whatever of prefix + question is not there yet; returns how many images were encoded."""
        prefix_rows = len(request.ids_before) + self._spec.vision.image_tokens
        rows, ahead = prefix_rows + len(after), request.max_new_tokens
        # Until the trunk is through, nothing may be taken for this question's prefix; nor after caches were lost.
        known = self._prefix if self._decoder.valid["trunk"] >= prefix_rows else None
        self._prefix = None
        with watch.stage("preprocess"):
            prefix = (request.image.digest(), request.ids_before)
        if prefix == known:
            with watch.stage("trunk"):
                self._decoder.truncate(prefix_rows)
                self._decoder.reserve(rows, ahead)
                self._decoder.run_trunk(after, prefix_rows)
        else:
            embeds = self._embed_all(request, after, watch)
            with watch.stage("trunk"):
                self._decoder.reset(rows, ahead)
                self._decoder.run_trunk(embeds, 0)
        self._prefix = prefix
        return 0 if prefix == known else 1

    def _embed_all(self, request: Request, after: FloatArray, watch: Stopwatch) -> list[Rows]:
        """Tokens before the image, the image, tokens after it."""
        with watch.stage("preprocess"):
            pixels = self._filled(1, lambda buffer: request.image.fill_base(self._spec.vision, buffer))
        with watch.stage("vision"):
            image = self._encode(pixels)
        return [self._embedding.rows(request.ids_before), image, after]

    def _filled(self, count: int, fill: Callable[[Buffer], None]) -> Buffer:
        """The vision graph's input (N,3,R,R)."""
        side = self._spec.vision.image_size_px
        buffer = self._backend.allocate((count, 3, side, side), "float32", for_host=True)
        fill(buffer)
        return buffer

    def _encode(self, pixels: Buffer) -> Buffer:
        """pixels (N,3,R,R) -> (N,G*G,D), which stay where the trunk will read them."""
        shape = (pixels.shape[0], self._spec.vision.image_tokens, self._spec.llm.width)
        result = self._backend.allocate(shape, "float32")
        self._vision.run({"pixel_values": pixels}, {"image_embeds": result})
        return result

    def _look(
        self, request: Request, rows: int, watch: Stopwatch
    ) -> tuple[FloatArray, RoiDecision] | tuple[None, None]:
        """The RoI map of the question, and the crops that it asks for."""
        rpn = self._spec.rpn
        if request.decide is None or rpn is None:
            return None, None
        first = len(request.ids_before)
        with watch.stage("rpn"):
            scores = self._decoder.run_rpn(rows)[:, first : first + self._spec.vision.image_tokens]
        with watch.stage("roi_decode"):
            logits = roi_logits_from_scores(
                scores, head_dim=self._spec.llm.head_dim, multi_head=rpn.multi_head, loss=rpn.loss
            )
            return logits, request.decide(logits, request.image.size)

    def _encode_crops(self, image: Picture, crops: Sequence[Crop], watch: Stopwatch) -> list[Rows]:
        """The kept tokens of every crop, in order."""
        with watch.stage("crop_preprocess"):
            boxes = [crop.box_xyxy_px for crop in crops]
            pixels = self._filled(len(crops), lambda buffer: image.fill_crops(boxes, self._spec.vision, buffer))
        with watch.stage("crop_vision"):
            features = self._encode(pixels)
            return [
                piece
                for index, crop in enumerate(crops)
                for piece in self._kept(features.entries(index, index + 1), crop)
            ]

    def _kept(self, features: Buffer, crop: Crop) -> Sequence[Rows]:
        """features (1,G*G,D) -> those cells that the crop keeps, or resized to its own grid."""
        side = self._spec.vision.grid_side
        if crop.keep_cells is not None:
            return [features.rows(start, stop) for start, stop in _runs(crop.keep_cells.reshape(-1))]
        if crop.grid_hw is not None:
            resized = resize_features(features.read().reshape(side, side, -1), crop.grid_hw)
            return [resized.reshape(-1, features.shape[-1])]
        return [features]

    def _second_pass(
        self, prefix_rows: int, embeds: Sequence[Rows], max_new_tokens: int, watch: Stopwatch
    ) -> FloatArray:
        """RoI tokens and question behind the stored prefix -> logits (V,)."""
        decoder, stop = self._decoder, prefix_rows + sum(map(row_count, embeds))
        with watch.stage("tail_prefill"):
            # Before the caches grow: attention costs by their length, and the prefix needs no more than this.
            if decoder.valid["tail"] < prefix_rows:
                decoder.run_tail(decoder.valid["tail"], prefix_rows)
        with watch.stage("crop_trunk"):
            decoder.truncate(prefix_rows)
            decoder.reserve(stop, max_new_tokens)
            decoder.run_trunk(embeds, prefix_rows)
        with watch.stage("tail_prefill"):
            return decoder.run_tail(prefix_rows, stop)

    def _require_context(self, prompt: int, roi: int, new: int) -> None:
        if prompt + roi + new <= self._max_context:
            return
        crop = f" + {roi} RoI tokens" if roi else ""
        mend = "answer without the crop (roi=None, --no-roi), " if roi else ""
        raise ContextTooLong(
            f"{prompt} prompt tokens{crop} + {new} new tokens need {prompt + roi + new} positions, the bundle has "
            f"{self._max_context}; shorten the question, {mend}or lower max_new_tokens"
        )


def _runs(kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where stretches of kept cells begin and end."""
    steps = np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8))
    return list(zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True))
