"""Compare whole answers with the slow reference: RoI map, boxes and tokens, in that order.

Knows no runtime: the caller passes a function that answers one question. Two differences are ties, not failures, and
are noted with the check that passes:

- a cell of the reference's map is so close to the threshold that rounding decides whether it is above. The tokens are
  then compared with the reference's answer for the crops that were found;
- the found token and the reference's differ so little in the reference's logits that rounding decides between
  them. After two different tokens the answers diverge, so the comparison of that answer ends there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from sdrpn.bundle.tolerances import Tolerances, tolerances_of
from sdrpn.compare.graphs import Check, Kind, until_failed
from sdrpn.compare.overlap import overlap
from sdrpn.compare.pictures import random_photograph
from sdrpn.errors import ContextTooLong, SdrpnError
from sdrpn.families.registry import family_of, prompt_of
from sdrpn.method.grids import ImageGrid
from sdrpn.method.policy import RoiChange
from sdrpn.method.roi import Crop, Decide, RoiDecision, RoiPolicy, roi_map
from sdrpn.method.spec import ModelSpec
from sdrpn.model.base import SdRpnModel
from sdrpn.model.reference import ReferenceAnswer, reference_answer

__all__ = [
    "NO_GATE",
    "QUESTION_IN_WORDS",
    "AnswerQuestion",
    "FoundAnswer",
    "TrialQuestion",
    "centred_correlation",
    "compare_answers",
    "question_in_words",
    "trial_questions",
]

Float32 = NDArray[np.float32]

QUESTION_IN_WORDS = "What is written on the sign?"
# Why the correlation of some maps is reported without a limit.
NO_GATE = "no gate: the RPN's weights are random, so its maps are nearly flat and any rounding changes them"
_NO_NUMBER = "not a finite number"
_SEED = 0
_IMAGE_SIZES_WH = ((640, 420), (300, 480))
_IDS_BEFORE, _IDS_AFTER, _NEW_TOKENS = 8, 6, 8


@dataclass(frozen=True)
class TrialQuestion:
    """One question about one image, by token ids; with `text`, the bundle is asked the words that become these ids."""

    label: str
    image: Image.Image
    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]
    roi: RoiPolicy | None  # None and no `decide`: one pass
    decide: Decide | None = None  # chooses the crops instead of `roi`
    max_new_tokens: int = _NEW_TOKENS
    text: str | None = None

    def reference(self, model: SdRpnModel) -> ReferenceAnswer:
        """What the reference answers."""
        return reference_answer(
            model,
            self.image,
            self.ids_before,
            self.ids_after,
            roi=self.roi,
            decide=self.decide,
            max_new_tokens=self.max_new_tokens,
            stop_ids=model.spec.prompt.eos_token_ids,
        )


@dataclass(frozen=True)
class FoundAnswer:
    """The parts of an answer that are compared."""

    token_ids: tuple[int, ...]  # without the stop token
    roi_logits: Float32 | None  # (G,G); None for one pass
    decision: RoiDecision | None


AnswerQuestion = Callable[[TrialQuestion], FoundAnswer]


def trial_questions(spec: ModelSpec) -> tuple[TrialQuestion, ...]:
    """Seeded questions: each image under each policy, and one with given crops, whatever the map.

    Random weights may give a map without a region; given crops make sure that crops are tested. A model without an RPN
    is asked with one pass.
    """
    rng = np.random.default_rng(_SEED)
    special = {spec.prompt.bos_token_id, spec.prompt.image_token_id, spec.prompt.pad_token_id}
    ordinary = sorted(set(range(spec.llm.vocabulary)) - special - set(spec.prompt.eos_token_ids))
    bos = () if spec.prompt.bos_token_id is None else (spec.prompt.bos_token_id,)
    questions = []
    for index, size in enumerate(_IMAGE_SIZES_WH):
        before = (*bos, *map(int, rng.choice(ordinary, _IDS_BEFORE - len(bos))))
        after = tuple(map(int, rng.choice(ordinary, _IDS_AFTER)))
        plain = TrialQuestion("plain", random_photograph(_SEED + index, size), before, after, roi=None)
        asked = [dataclasses.replace(plain, label=label, roi=roi) for label, roi in _policies(spec).items()]
        if index == 0 and spec.rpn is not None:
            crops = _given_crops(spec.vision.grid(size))
            asked.append(dataclasses.replace(plain, label="given crops", decide=_decide_on(crops)))
        name = f"image {index + 1}"
        questions += [dataclasses.replace(question, label=f"{name}, {question.label}") for question in (*asked, plain)]
    return tuple(questions)


def question_in_words(spec: ModelSpec, tokenizer: Tokenizer) -> TrialQuestion:
    """A question as text. Raises BadInput if the checkpoint's template cannot be filled."""
    prompt = prompt_of(spec, tokenizer, QUESTION_IN_WORDS)
    roi = next(iter(_policies(spec).values()), None)
    picture = random_photograph(_SEED, _IMAGE_SIZES_WH[0])
    return TrialQuestion("in words", picture, prompt.ids_before, prompt.ids_after, roi, text=QUESTION_IN_WORDS)


def compare_answers(
    model: SdRpnModel,
    questions: Sequence[TrialQuestion],
    answer: AnswerQuestion,
    *,
    variant: str,
    precision: str,
    thorough: bool = False,
) -> Iterator[Check]:
    """Ask the reference and `answer` every question; after the first kind that fails, continue with the next question.

    Args:
        model: float32, from the bundle's checkpoint
        answer: ContextTooLong becomes a note, any other SdrpnError a failed check
        variant, precision: of the bundle, for the checks and their limits
        thorough: check every kind for every question, also the overlap of boxes
    """
    for question in questions:
        asked = _Asked(model, question, variant, tolerances_of(precision))
        try:
            found = answer(question)
        except ContextTooLong as error:
            yield asked.check("tokens", "not asked", note=str(error))
        except SdrpnError as error:
            yield asked.check("tokens", f"no answer: {error}", "an answer", ok=False)
        else:
            yield from asked.compare(found, thorough=thorough)


@dataclass(frozen=True)
class _Asked:
    """A question to the model, with the limits for its answer."""

    model: SdRpnModel
    question: TrialQuestion
    variant: str
    limits: Tolerances

    def compare(self, found: FoundAnswer, *, thorough: bool = False) -> Iterator[Check]:
        expected = self.question.reference(self.model)
        stages = self._map(found, expected), self._boxes(found, expected), self._tokens(found, expected)
        yield from chain(self._overlap(found, expected), *stages) if thorough else until_failed(*stages)

    def check(
        self, kind: Kind, found: str | float, expected: str | None = None, *, ok: bool = True, note: str = ""
    ) -> Check:
        return Check(self.variant, "answer", kind, self.question.label, found, expected, ok=ok, note=note)

    def _map(self, found: FoundAnswer, expected: ReferenceAnswer) -> Iterator[Check]:
        if found.roi_logits is None or expected.roi_logits is None:
            if found.roi_logits is not expected.roi_logits:
                texts = ["no map" if logits is None else "a map" for logits in (found.roi_logits, expected.roi_logits)]
                yield self.check("roi cosine", *texts, ok=False)
            return
        cosine = _cosine(roi_map(found.roi_logits), roi_map(expected.roi_logits))
        yield self._at_least("roi cosine", cosine, self.limits.roi_cosine)
        correlation = centred_correlation(found.roi_logits, expected.roi_logits)
        if self.model.rpn_trained:
            yield self._at_least("roi correlation", correlation, self.limits.roi_correlation)
        else:
            yield self.check("roi correlation", correlation if np.isfinite(correlation) else _NO_NUMBER, NO_GATE)

    def _at_least(self, kind: Kind, value: float, limit: float) -> Check:
        check = self.check(kind, value if np.isfinite(value) else _NO_NUMBER, ok=value >= limit)
        return dataclasses.replace(check, limit=limit)

    def _boxes(self, found: FoundAnswer, expected: ReferenceAnswer) -> Iterator[Check]:
        if found.decision is None or expected.decision is None:
            return  # both plain, or the check of the maps failed
        texts = _text_from_decision(found.decision), _text_from_decision(expected.decision)
        same = _same_crops(found.decision, expected.decision)
        close = 0 if same else self._close_cells(expected.decision)
        note = f"tie: {close} cells within {self.limits.roi_map:g} of the threshold" if close else ""
        yield self.check("boxes", *texts, ok=same or close > 0, note=note)

    def _overlap(self, found: FoundAnswer, expected: ReferenceAnswer) -> Iterator[Check]:
        if found.decision is None or expected.decision is None or self.question.decide is not None:
            return  # no decision, or given crops
        iou = overlap(
            *([crop.box_xyxy_px for crop in decision.crops] for decision in (found.decision, expected.decision))
        )
        tie = iou < 1 and self._close_cells(expected.decision) > 0
        yield self.check("box IoU", iou, note="tie" if tie else "")

    def _tokens(self, found: FoundAnswer, expected: ReferenceAnswer) -> Iterator[Check]:
        decision = found.decision
        if decision is not None and expected.decision is not None and not _same_crops(decision, expected.decision):
            # The boxes are at a tie.
            tied = dataclasses.replace(self.question, decide=lambda logits, image_wh: decision)
            expected = tied.reference(self.model)
        texts = _text_from_ids(found.token_ids), _text_from_ids(expected.token_ids)
        at = _first_difference(found.token_ids, expected.token_ids)
        if at is None:
            yield self.check("tokens", *texts)
            return
        margin, limit = self._margin(found.token_ids, expected.step_logits, at), self.limits.token_logit
        note = f"token {at + 1} is {margin:.1e} of the largest logit below the reference's; up to {limit:g} is a tie"
        yield self.check("tokens", *texts, ok=margin <= limit, note=note if np.isfinite(margin) else "")

    def _close_cells(self, decision: RoiDecision) -> int:
        """The number of cells of the reference's map that rounding may move across the threshold."""
        roi = self.question.roi
        if roi is None or self.question.decide is not None:
            return 0
        blurred = decision.blurred_map
        threshold = roi.threshold if roi.threshold > 0 else float(blurred.max()) * -roi.threshold
        return int((np.abs(blurred - threshold) <= self.limits.roi_map).sum())

    def _margin(self, ids: Sequence[int], step_logits: Float32, at: int) -> float:
        """How far the found token at `at` is below the reference's choice, as a share of max(1, the row's largest).

        At the end of the found answer, it is a stop token. Infinite for what rounding cannot explain: a stop token
        within an answer, or an answer beyond the maximum length.
        """
        stop_ids = self.model.spec.prompt.eos_token_ids
        ended = at == len(ids)
        if at >= len(step_logits) or (not ended and ids[at] in stop_ids):
            return float("inf")
        row = step_logits[at].astype(np.float64)
        candidates = [i for i in stop_ids if i < len(row)] if ended else [ids[at]]
        chosen = max((row[i] for i in candidates), default=-np.inf)
        return float((row.max() - chosen) / max(1.0, np.abs(row).max()))


def _policies(spec: ModelSpec) -> dict[str, RoiPolicy]:
    if spec.rpn is None:
        return {}
    upscales: tuple[Literal["mask", "bbox"], ...] = ("mask", "bbox")
    # Whatever the gate says, which is compared by itself: its score may lie near any threshold.
    always = -1.0 if spec.rpn.has_gate else None
    return {
        name: RoiChange(upscale=name, gate_threshold=always).applied_to(family_of(spec).policy(spec))
        for name in upscales
    }


def _given_crops(grid: ImageGrid) -> tuple[Crop, ...]:
    """A crop that keeps every other cell, and a whole one."""
    width, height = grid.image_wh
    box = width // 8, height // 8, width // 2, height // 2
    keep = np.indices(grid.crop_hw(box)).sum(axis=0) % 2 == 0
    return (
        Crop(box, keep_cells=keep),
        Crop((width // 2, height // 3, width, height)),
    )


def _decide_on(crops: tuple[Crop, ...]) -> Decide:
    def decide(logits: Float32, image_wh: tuple[int, int]) -> RoiDecision:
        return RoiDecision(np.zeros((0, 4), np.int64), crops, None, logits)

    return decide


def _cosine(found: Float32, expected: Float32) -> float:
    if found.shape != expected.shape:
        return float("nan")
    a, b = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def centred_correlation(found: Float32, expected: Float32) -> float:
    """The correlation of two maps of logits about their means (Pearson): 1 if one is the other times a factor, plus a
    constant.

    Two maps without any contrast count as equal. NaN for maps of different shapes.
    """
    if found.shape != expected.shape:
        return float("nan")
    a, b = (array.astype(np.float64).ravel() for array in (found, expected))
    a, b = a - a.mean(), b - b.mean()
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else float(np.array_equal(a, b))


def _same_crops(found: RoiDecision, expected: RoiDecision) -> bool:
    if not np.array_equal(found.boxes_cells, expected.boxes_cells) or len(found.crops) != len(expected.crops):
        return False
    return all(_same_crop(*pair) for pair in zip(found.crops, expected.crops, strict=True))


def _same_crop(found: Crop, expected: Crop) -> bool:
    if (found.box_xyxy_px, found.grid_hw) != (expected.box_xyxy_px, expected.grid_hw):
        return False
    if found.keep_cells is None or expected.keep_cells is None:
        return found.keep_cells is expected.keep_cells
    return np.array_equal(found.keep_cells, expected.keep_cells)


def _first_difference(found: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first position where two answers differ; the end of the shorter one counts, as a stop token."""
    if tuple(found) == tuple(expected):
        return None
    pairs = zip(found, expected, strict=False)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))


def _text_from_decision(decision: RoiDecision) -> str:
    return "; ".join(map(_text_from_crop, decision.crops)) or "no crop"


def _text_from_crop(crop: Crop) -> str:
    kept = "" if crop.keep_cells is None else f" keeping {int(crop.keep_cells.sum())} cells"
    return f"{tuple(map(int, crop.box_xyxy_px))}{kept}"


def _text_from_ids(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids)) or "no token"
