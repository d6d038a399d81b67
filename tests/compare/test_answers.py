"""When two answers are the same, when rounding explains a difference, and when nothing does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.tolerances import TOLERANCES
from sdrpn.checkpoint import open_checkpoint
from sdrpn.compare.answers import (
    NO_GATE,
    FoundAnswer,
    TrialQuestion,
    centred_correlation,
    compare_answers,
    trial_questions,
)
from sdrpn.compare.graphs import Check
from sdrpn.errors import ContextTooLong, RunFailed
from sdrpn.method.geometry import PaddedGrid
from sdrpn.method.roi import RoiPolicy, decide_crops
from sdrpn.method.spec import ModelSpec
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.reference import ReferenceAnswer

LIMITS = TOLERANCES["fp32"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(tiny_checkpoint) as source:
        return model_from_checkpoint(source)


@pytest.fixture(scope="module")
def questions(tiny_spec: ModelSpec) -> tuple[TrialQuestion, ...]:
    return trial_questions(tiny_spec)


def found_from_reference(answer: ReferenceAnswer) -> FoundAnswer:
    return FoundAnswer(answer.token_ids, answer.roi_logits, answer.decision)


def compare(model: SdRpnModel, question: TrialQuestion, answer: Callable[[TrialQuestion], FoundAnswer]) -> list[Check]:
    return list(compare_answers(model, [question], answer, variant="v", precision="fp32"))


def compare_found(model: SdRpnModel, question: TrialQuestion, found: FoundAnswer) -> dict[str, Check]:
    return {check.kind: check for check in compare(model, question, lambda question: found)}


class TestQuestions:
    def test_every_way_through_is_asked(self, questions: tuple[TrialQuestion, ...]) -> None:
        assert [question.label for question in questions] == [
            "image 1, mask", "image 1, bbox", "image 1, given crops", "image 1, plain",
            "image 2, mask", "image 2, bbox", "image 2, plain",
        ]  # fmt: skip
        assert questions[0].roi == RoiPolicy()

    def test_they_are_the_same_every_time(self, tiny_spec: ModelSpec, questions: tuple[TrialQuestion, ...]) -> None:
        for first, second in zip(trial_questions(tiny_spec), questions, strict=True):
            assert (first.ids_before, first.ids_after) == (second.ids_before, second.ids_after)
            assert first.image.tobytes() == second.image.tobytes()

    def test_special_tokens_are_not_asked_about(
        self, tiny_spec: ModelSpec, questions: tuple[TrialQuestion, ...]
    ) -> None:
        assert tiny_spec.prompt.bos_token_id is not None
        special = {tiny_spec.prompt.bos_token_id, *tiny_spec.prompt.eos_token_ids}
        for question in questions:
            assert question.ids_before[0] == tiny_spec.prompt.bos_token_id
            assert special.isdisjoint(question.ids_before[1:] + question.ids_after)

    def test_crops_are_tried_whatever_the_map_says(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]
    ) -> None:
        answer = questions[2].reference(model)
        cells = model.spec.vision.image_tokens
        assert answer.roi_token_count == cells + cells // 2

    def test_without_an_rpn_plain_alone_is_asked(self, tiny_spec: ModelSpec) -> None:
        plain = dataclasses.replace(tiny_spec, rpn=None)
        assert [question.label for question in trial_questions(plain)] == ["image 1, plain", "image 2, plain"]


class TestSame:
    @pytest.mark.parametrize("index", [0, 2, 3])
    def test_the_reference_equals_itself(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...], index: int
    ) -> None:
        question = questions[index]
        checks = compare_found(model, question, found_from_reference(question.reference(model)))
        plain = question.label.endswith("plain")
        assert list(checks) == (["tokens"] if plain else ["roi cosine", "roi correlation", "boxes", "tokens"])
        assert all(check.ok and not check.note for check in checks.values())


class TestCorrelation:
    """Correlation of the logits of RoI maps about their means, beside the cosine of the maps."""

    def test_what_it_is_of_two_maps(self) -> None:
        rng = np.random.default_rng(0)
        one, other = rng.standard_normal((2, 24, 24)).astype(np.float32)
        assert centred_correlation(3 * one - 20, one) == pytest.approx(1.0)
        assert centred_correlation(-one, one) == pytest.approx(-1.0)
        assert centred_correlation(other, one) == pytest.approx(np.corrcoef(other.ravel(), one.ravel())[0, 1])
        assert np.isnan(centred_correlation(one[:12], one))

    def test_maps_without_contrast(self) -> None:
        flat = np.full((4, 4), -3.0, np.float32)
        assert centred_correlation(flat, flat) == 1.0
        assert centred_correlation(np.arange(16, dtype=np.float32).reshape(4, 4), flat) == 0.0

    @pytest.fixture
    def trained(self, model: SdRpnModel) -> Iterator[SdRpnModel]:
        model.rpn_trained = True
        yield model
        model.rpn_trained = False

    def wrong_but_flat(self, model: SdRpnModel, question: TrialQuestion) -> FoundAnswer:
        """A map whose contrast, which is small beside its height, is that of another map."""
        found = found_from_reference(question.reference(model))
        assert found.roi_logits is not None
        noise = np.random.default_rng(0).standard_normal(found.roi_logits.shape).astype(np.float32)
        return dataclasses.replace(found, roi_logits=found.roi_logits.mean() + 1e-3 * noise)

    def flat_reference(self, monkeypatch: pytest.MonkeyPatch, model: SdRpnModel, question: TrialQuestion) -> None:
        """The reference's own map as flat: 3e-3 of its contrast is left."""
        answer = question.reference(model)
        assert answer.roi_logits is not None
        mean = answer.roi_logits.mean()
        flat = dataclasses.replace(answer, roi_logits=mean + 3e-3 * (answer.roi_logits - mean))
        monkeypatch.setattr("sdrpn.compare.answers.reference_answer", lambda *args, **kwargs: flat)

    def test_a_wrong_map_that_is_flat_passes_the_cosine_alone(
        self, trained: SdRpnModel, questions: tuple[TrialQuestion, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = self.wrong_but_flat(trained, questions[0])
        self.flat_reference(monkeypatch, trained, questions[0])
        checks = compare_found(trained, questions[0], wrong)
        assert list(checks) == ["roi cosine", "roi correlation"]
        assert checks["roi cosine"].ok
        assert (checks["roi correlation"].ok, checks["roi correlation"].limit) == (False, LIMITS.roi_correlation)
        assert isinstance(checks["roi correlation"].found, float)
        assert checks["roi correlation"].found < 0.9

    def test_of_a_random_rpn_it_is_told_without_a_gate(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = self.wrong_but_flat(model, questions[0])
        self.flat_reference(monkeypatch, model, questions[0])
        check = compare_found(model, questions[0], wrong)["roi correlation"]
        assert (check.ok, check.limit, check.expected) == (True, None, NO_GATE)
        assert isinstance(check.found, float)
        assert check.found < 0.9


class TestDifferent:
    def test_another_map_leaves_boxes_and_tokens_out(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]
    ) -> None:
        found = found_from_reference(questions[0].reference(model))
        assert found.roi_logits is not None
        checks = compare_found(model, questions[0], dataclasses.replace(found, roi_logits=-3 * found.roi_logits))
        assert list(checks) == ["roi cosine", "roi correlation"]
        assert (checks["roi cosine"].ok, checks["roi cosine"].limit) == (False, LIMITS.roi_cosine)

    def test_a_map_that_is_no_number(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        found = found_from_reference(questions[0].reference(model))
        broken = np.full((4, 4), np.nan, np.float32)
        check = compare_found(model, questions[0], dataclasses.replace(found, roi_logits=broken))["roi cosine"]
        assert (check.ok, check.found) == (False, "not a finite number")

    def test_a_map_where_none_was_asked_for(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        found = found_from_reference(questions[3].reference(model))
        extra = dataclasses.replace(found, roi_logits=np.zeros((4, 4), np.float32))
        check = compare_found(model, questions[3], extra)["roi cosine"]
        assert (check.ok, check.found, check.expected) == (False, "a map", "no map")

    def test_another_box_far_from_the_threshold(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        found = found_from_reference(questions[2].reference(model))
        assert found.decision is not None
        fewer = dataclasses.replace(found.decision, crops=found.decision.crops[:1])
        checks = compare_found(model, questions[2], dataclasses.replace(found, decision=fewer))
        assert list(checks) == ["roi cosine", "roi correlation", "boxes"]
        assert not checks["boxes"].ok
        assert "keeping 8 cells" in str(checks["boxes"].found)

    def test_an_unlikely_token(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        answer = questions[3].reference(model)
        unlikely = int(answer.step_logits[2].argmin())
        ids = (*answer.token_ids[:2], unlikely, *answer.token_ids[3:])
        check = compare_found(model, questions[3], FoundAnswer(ids, None, None))["tokens"]
        assert not check.ok
        assert check.note.startswith("token 3 is ")

    def test_an_answer_that_stops_early(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        answer = questions[3].reference(model)
        check = compare_found(model, questions[3], FoundAnswer(answer.token_ids[:4], None, None))["tokens"]
        assert not check.ok

    def test_an_answer_that_does_not_stop(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stop token is as likely as can be, but it has no place in an answer."""
        ids = questions[3].reference(model).token_ids
        prompt = dataclasses.replace(model.spec.prompt, eos_token_ids=(ids[2],))
        monkeypatch.setattr(model, "spec", dataclasses.replace(model.spec, prompt=prompt))
        check = compare_found(model, questions[3], FoundAnswer(ids, None, None))["tokens"]
        assert (check.ok, len(str(check.expected).split())) == (False, 2)

    def test_an_answer_that_is_too_long(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        ids = (*questions[3].reference(model).token_ids, 5)
        check = compare_found(model, questions[3], FoundAnswer(ids, None, None))["tokens"]
        assert not check.ok

    def test_no_answer(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        def fail(question: TrialQuestion) -> FoundAnswer:
            raise RunFailed("out of memory")

        (check,) = compare(model, questions[3], fail)
        assert (check.ok, check.kind, check.found) == (False, "tokens", "no answer: out of memory")


class TestTies:
    def test_tokens_that_are_as_likely(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answer = questions[3].reference(model)
        rows = answer.step_logits.copy()
        other = int(np.argsort(rows[3])[-2])
        rows[3, other] = rows[3].max() - 0.5 * LIMITS.token_logit
        close = dataclasses.replace(answer, step_logits=rows)
        monkeypatch.setattr("sdrpn.compare.answers.reference_answer", lambda *args, **options: close)
        ids = (*answer.token_ids[:3], other, 0, 0, 0, 0)
        check = compare_found(model, questions[3], FoundAnswer(ids, None, None))["tokens"]
        assert check.ok
        assert "token 4 is " in check.note
        assert check.found != check.expected

    def test_a_cell_at_the_threshold(self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]) -> None:
        """Its region may be there or not; the tokens are those for the region that was found."""
        logits = questions[1].reference(model).roi_logits
        assert logits is not None
        grid = PaddedGrid(questions[1].image.size, 56, 4)
        cells = np.unique(decide_crops(logits, grid, RoiPolicy()).blurred_map)
        step = 0.3 * LIMITS.roi_map
        for cell in map(float, cells):  # one whose presence makes other boxes
            below, above = (
                decide_crops(logits, grid, RoiPolicy(cell + shift, "bbox", min_cells=1)) for shift in (-step, step)
            )
            if not np.array_equal(below.boxes_cells, above.boxes_cells) and above.crops:
                break
        else:
            pytest.fail("no cell of the map decides about a box")
        question = dataclasses.replace(questions[1], roi=RoiPolicy(cell - step, "bbox", min_cells=1))
        expected = dataclasses.replace(question, decide=lambda logits, image_wh: above).reference(model)
        checks = compare_found(model, question, FoundAnswer(expected.token_ids, logits, above))
        assert all(check.ok for check in checks.values())
        assert checks["boxes"].note.startswith("tie: ")
        assert checks["tokens"].note == ""

    def test_what_does_not_fit_the_context_is_noted(
        self, model: SdRpnModel, questions: tuple[TrialQuestion, ...]
    ) -> None:
        def refuse(question: TrialQuestion) -> FoundAnswer:
            raise ContextTooLong("14 positions are too few")

        (check,) = compare(model, questions[3], refuse)
        assert (check.ok, check.found, check.note) == (True, "not asked", "14 positions are too few")
