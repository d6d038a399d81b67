"""One question on its way: what was asked, where its rows are, what is known so far, and how it ended. Runs nothing.

A `Sequence` becomes an answer, token by token; a `Glance` ends with the map, and what was decided by it.
"""

from __future__ import annotations

import collections.abc as abc
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from sdrpn.errors import BadInput
from sdrpn.families.family import Span
from sdrpn.method.grids import ImageGrid, cell_count
from sdrpn.method.roi import Crop, PolicyDecide, RoiDecision, roi_map
from sdrpn.method.spec import Vision
from sdrpn.runtime.answer import Answer, Stopwatch, Timings, TokenCounts, Trace
from sdrpn.runtime.pictures.picture import Picture
from sdrpn.runtime.pictures.reference import PictureReference
from sdrpn.runtime.regions import DroppedRegion
from sdrpn.runtime.sampling import Constraint, Sampler, Sampling
from sdrpn.runtime.slots import Prefix, RoiScores, Slot

__all__ = ["Found", "Glance", "LookPlan", "LookRequest", "Prefill", "QuestionRequest", "Sequence", "Shown", "Work"]

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LookPlan:
    """How a question looks at its picture.

    vision: the model's own, or with another budget
    decide: how a map becomes crops; None: a plain answer, one look
    gate_threshold: a score of the gate below it ends with the first look; None: the gate is not asked
    note: for the answer, such as why there is one look only
    """

    vision: Vision
    decide: PolicyDecide | None
    gate_threshold: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Shown:
    """A further picture of a prompt, and the ids after it."""

    image: Picture
    ids_after: tuple[int, ...]


@dataclass(frozen=True)
class QuestionRequest:
    """One question about a picture, and perhaps further ones, which are looked at once; or about none.

    ids_before: before the image; of a text alone all but the last token. ids_after: after it, up to the next one.
    """

    image: Picture | None
    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]
    plan: LookPlan
    max_new_tokens: int
    further: tuple[Shown, ...] = ()

    least_new_tokens: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not self.ids_after:
            raise BadInput("no token follows the image; expected at least one, the question")
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < self.least_new_tokens:
            raise BadInput(
                f"max_new_tokens is {self.max_new_tokens!r}; expected an integer of at least 1",
                options=("max_new_tokens",),
            )

    @property
    def picture(self) -> Picture:
        """The picture that may be looked at again."""
        assert self.image is not None
        return self.image

    @property
    def grid(self) -> ImageGrid:
        """The cells that the model sees of the picture. Raises BadImage for one that it does not take."""
        return self.plan.vision.grid(self.picture.size)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Rows and columns of these cells; (0, 0) without a picture."""
        return (0, 0) if self.image is None else self.grid.hw

    @property
    def spans(self) -> tuple[Span, ...]:
        """The tokens of the prompt in order."""
        found: list[Span] = [len(self.ids_before), self.image_hw, len(self.ids_after)]
        for shown in self.further:
            found += [self.plan.vision.grid(shown.image.size).hw, len(shown.ids_after)]
        return tuple(found)

    @property
    def rows(self) -> int:
        """The number of tokens of the prompt."""
        return sum(span if isinstance(span, int) else cell_count(span) for span in self.spans)

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The ids of the prompt, without images."""
        further = (token_id for shown in self.further for token_id in shown.ids_after)
        return (*self.ids_before, *self.ids_after, *further)


@dataclass(frozen=True)
class LookRequest(QuestionRequest):
    """A question whose regions alone are asked for."""

    max_new_tokens: int = 0

    least_new_tokens: ClassVar[int] = 0


@dataclass(frozen=True, eq=False)
class Found:
    """What a first look leads to.

    scores: of the RPN; None where it was not asked: a plain answer, or the gate says no
    decision: the crops; None as well
    gate_score: None where there is no gate, or it was not asked
    note: why there is no crop, or not every region in one
    """

    scores: RoiScores | None = None
    decision: RoiDecision | None = None
    gate_score: float | None = None
    note: str | None = None

    @property
    def crops(self) -> tuple[Crop, ...]:
        """What is looked at again."""
        return self.decision.crops if self.decision is not None else ()

    @property
    def roi_logits(self) -> FloatArray | None:
        """(h,w), before the sigmoid."""
        return self.scores.roi_logits if self.scores is not None else None


@dataclass(frozen=True)
class Prefill:
    """The result of a prefill, before the first token."""

    tokens: int  # rows of the last pass, which the first token follows
    prompt_tokens: int  # of the first pass
    found: Found
    roi_tokens: int
    again: int  # rows of the second pass that the trunk computed
    images_encoded: int
    rows: abc.Mapping[str, int]  # computed by each decoder graph
    dropped: tuple[DroppedRegion, ...] = ()
    kept_source: npt.NDArray[np.bool_] | None = None  # (h*w,) image tokens of the second pass; None: all


class Work:
    """What waits for a slot and is over some time: with what it is for, or with an `error`."""

    keep_trace = False

    def __init__(self, request: QuestionRequest, prefix: Prefix, watch: Stopwatch) -> None:
        self._request: QuestionRequest | None = request
        self.prefix, self.watch = prefix, watch
        self.slot: Slot | None = None  # while it holds one from one unit of work to the next
        self.error: Exception | None = None
        self.cancelled = False

    @property
    def request(self) -> QuestionRequest:
        """What was asked; of a sequence until its first token: nothing needs the picture after it, which is large."""
        assert self._request is not None
        return self._request

    @property
    def over(self) -> bool:
        """Whether the answer is complete or failed."""
        return self.error is not None

    def fail(self, error: Exception) -> None:
        """End with an error, unless it is over."""
        if not self.over:
            self.error = error


class Glance(Work):
    """Everything that belongs to one look. It is over when the map is there: it holds no slot afterwards."""

    found: Found | None = None

    @property
    def over(self) -> bool:
        """Whether the map is there, or never will be."""
        return self.found is not None or self.error is not None


class Sequence(Work):
    """The state of one answer.

    Its rows are those of `slot` (`slot.valid`, by graph). The next token goes to cache row `row`; `position` is its
    position for the rotary embedding. It is over when it has a `finish_reason` or an `error`.
    """

    def __init__(
        self,
        request: QuestionRequest,
        prefix: Prefix,
        watch: Stopwatch,
        sampling: Sampling,
        stop_ids: abc.Iterable[int],
        *,
        keep_trace: bool = False,
        picture: PictureReference | None = None,
        constraint: Constraint | None = None,
        ends: Callable[[int], bool] = lambda token_id: False,
    ) -> None:
        """Args:
        picture: for the answer, to draw on
        constraint: which tokens may follow
        ends: called with every token; True ends the answer with it
        """
        super().__init__(request, prefix, watch)
        self._texts, self._limit = len(request.text_ids), request.max_new_tokens
        self.row = self.position = 0
        self.prefill: Prefill | None = None
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None
        self._sampler, self._stop_ids = Sampler(sampling, request.text_ids), frozenset(stop_ids)
        self._constraint, self._ends = constraint, ends
        self.keep_trace, self._picture = keep_trace, picture
        self._step_logits: list[FloatArray] = []
        self._timings: Timings | None = None

    @property
    def over(self) -> bool:
        """Whether the answer is complete or failed."""
        return self.finish_reason is not None or self.error is not None

    def begin(self, slot: Slot, prefill: Prefill, position: int | None = None) -> None:
        """Both passes are done; the first token follows them, at `position`, or the number of its row."""
        self.slot, self.prefill, self.row = slot, prefill, prefill.tokens
        self.position = prefill.tokens if position is None else position

    def advance(self, seconds: float) -> None:
        """A decode step of this sequence was computed."""
        self.row, self.position = self.row + 1, self.position + 1
        self.watch.decode_step(seconds)

    def choose(self, logits: FloatArray) -> None:
        """Choose a token, or end at a stop token or the limit, from logits (V,)."""
        if self.over:  # closed meanwhile
            return
        self.watch.token()
        if self.keep_trace:
            self._step_logits.append(logits.copy())
        logits = self._sampler.penalised(logits)
        if self._constraint is not None:
            logits = self._constraint.restricted(logits)
        token_id = self._sampler.choose(logits)
        if token_id in self._stop_ids:
            self._finish("stop")
        else:
            ends = self._constraint is not None and self._constraint.accept(token_id)
            ends = self._ends(token_id) or ends
            self.token_ids.append(token_id)
            if ends:
                self._finish("stop")
            elif len(self.token_ids) == self._limit:
                self._finish("length")
        self._request = None

    def answer(self, text: str) -> Answer:
        """The complete answer."""
        assert self.prefill is not None
        assert self.finish_reason is not None
        assert self._timings is not None
        found, roi_logits = self.prefill.found, self.prefill.found.roi_logits
        return Answer(
            text=text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            boxes_xyxy_px=tuple(crop.box_xyxy_px for crop in found.crops),
            roi_map=roi_map(roi_logits) if roi_logits is not None else None,
            roi_token_count=self.prefill.roi_tokens,
            note=found.note,
            timings=self._timings,
            tokens=self._counts(self.prefill),
            trace=self._trace(self.prefill) if self.keep_trace else None,
            dropped=self.prefill.dropped,
            picture=self._picture,
            gate_score=found.gate_score,
        )

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        self._timings, self.finish_reason = self.watch.timings(), reason

    def _counts(self, prefill: Prefill) -> TokenCounts:
        kept = prefill.kept_source
        return TokenCounts(
            prompt=prefill.prompt_tokens,
            image=prefill.prompt_tokens - self._texts,
            roi=prefill.roi_tokens,
            generated=len(self.token_ids),
            trunk_rows=prefill.rows["trunk"],
            rpn_rows=prefill.rows.get("rpn", 0),
            tail_rows=prefill.rows["tail"],
            images_encoded=prefill.images_encoded,
            cached=prefill.prompt_tokens - (prefill.rows["trunk"] - prefill.again),
            gate_rows=prefill.rows.get("gate", 0),
            pruned=0 if kept is None else int(np.count_nonzero(~kept)),
        )

    def _trace(self, prefill: Prefill) -> Trace:
        steps = np.stack(self._step_logits)
        found = prefill.found
        return Trace(found.roi_logits, found.decision, steps[0], steps, found.gate_score, prefill.kept_source)
