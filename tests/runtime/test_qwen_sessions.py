"""Sessions of random Qwen models: equal to PyTorch, whatever the picture, the order of questions and the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.qwen.vision_spec import qwen_vision_of, with_image_tokens
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import ModelSpec
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.reference import reference_answer
from sdrpn.runtime import Answer, Session
from sdrpn.runtime.bench import CASES, SessionSide, bench_cases
from sdrpn.runtime.engines.trial_run import smoke_test_graphs
from sdrpn.runtime.questions import AnswerOptions
from tests.families.qwen.models import KINDS
from tests.tolerances import BATCH_LOGITS_ABS, LOOK_MAP_ABS, PARITY_ABS, REUSE_LOGITS_ABS

BEFORE, AFTER, OTHER = (300, 7, 302), (303, 11, 12), (303, 21, 22, 23, 24)
LOOKING = [kind for kind, spec in KINDS.items() if spec.rpn is not None]
GATED = [kind for kind, spec in KINDS.items() if spec.rpn is not None and spec.rpn.gate_layers]
TOKENS = 64  # most of a picture
STEPS = 4
# A random map is about one half everywhere: all of it fires, or nothing.
EVERYWHERE, NOWHERE = RoiPolicy(0.01, gate_threshold=-1), RoiPolicy(0.99, gate_threshold=-1)

Open = Callable[..., Session]


class Models:
    """Checkpoints, bundles and PyTorch models of the kinds, made when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[str, SdRpnModel] = {}

    def bundle(self, kind: str) -> Path:
        bundle = self._folder / f"{kind}-bundle"
        if not bundle.exists():
            for dialect in ("fused", "primitive"):
                export_bundle(self._checkpoint(kind), bundle, ExportOptions("fp32", dialect))
        return bundle

    def model(self, kind: str) -> SdRpnModel:
        if kind not in self._models:
            with open_checkpoint(self._checkpoint(kind)) as opened:
                self._models[kind] = model_from_checkpoint(opened)
        return self._models[kind]

    def _checkpoint(self, kind: str) -> Path:
        checkpoint = self._folder / kind
        if not checkpoint.exists():
            write_random_checkpoint(checkpoint, KINDS[kind], roi_gain=3.0)
        return checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("random"))


def opened(models: Models, kind: str, dialect: str = "fused", **options: Any) -> Session:
    return Session.open(models.bundle(kind), variant=f"{dialect}-fp32", threads=1, **options)


def picture(size: tuple[int, int], seed: int = 1) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)


def ask(session: Session, image: Image.Image, after: tuple[int, ...] = AFTER, **options: Any) -> Answer:
    options = {"roi": EVERYWHERE, "max_new_tokens": STEPS, "trace": True, "image_tokens": (4, TOKENS), **options}
    return session.answer_ids(image, BEFORE, after, **options)


def require_equal(found: Answer, expected: Answer, tolerance: float) -> None:
    assert found.trace is not None
    assert expected.trace is not None
    assert found.token_ids == expected.token_ids
    assert found.boxes_xyxy_px == expected.boxes_xyxy_px
    assert found.roi_token_count == expected.roi_token_count
    np.testing.assert_allclose(found.trace.step_logits, expected.trace.step_logits, atol=tolerance)


# Compared with PyTorch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_pytorch(models: Models, kind: str, dialect: str) -> None:
    """Pictures of one cell, of one row of cells and of several; with a region, without one, and twice."""
    model = models.model(kind)
    vision = with_image_tokens(qwen_vision_of(model.spec), 4, TOKENS)
    with opened(models, kind, dialect) as session:
        for size in ((140, 100), (900, 32), (29, 400), (28, 28), (211, 333)):
            image = picture(size)
            for after, policy in ((AFTER, EVERYWHERE), (OTHER, NOWHERE), (AFTER, None), (AFTER, EVERYWHERE)):
                policy = policy if model.rpn is not None else None
                expected = reference_answer(
                    model, image, BEFORE, after, roi=policy, max_new_tokens=STEPS, vision=vision, stop_ids=(301,)
                )
                answer = ask(session, image, after, roi=policy)
                assert answer.trace is not None
                assert answer.token_ids == expected.token_ids
                np.testing.assert_allclose(answer.trace.step_logits, expected.step_logits, atol=PARITY_ABS)
                if expected.decision is not None:
                    assert answer.trace.roi_logits is not None
                    assert expected.roi_logits is not None
                    boxes = [crop.box_xyxy_px for crop in expected.decision.crops]
                    assert list(answer.boxes_xyxy_px) == boxes
                    np.testing.assert_allclose(answer.trace.roi_logits, expected.roi_logits, atol=PARITY_ABS)


@pytest.mark.parametrize("kind", ["bare", "bare-3", "q-zoom"])
@pytest.mark.parametrize("size", [(28, 28), (4000, 30), (6000, 4000)])
def test_plain_answers_about_pictures_of_extreme_sizes(models: Models, kind: str, size: tuple[int, int]) -> None:
    model = models.model(kind)
    vision = with_image_tokens(qwen_vision_of(model.spec), 4, TOKENS)
    image = picture(size)
    expected = reference_answer(model, image, BEFORE, AFTER, roi=None, max_new_tokens=2, vision=vision, stop_ids=(301,))
    with opened(models, kind) as session:
        answer = ask(session, image, roi=None, max_new_tokens=2)
    assert answer.trace is not None
    assert answer.token_ids == expected.token_ids
    np.testing.assert_allclose(answer.trace.step_logits, expected.step_logits, atol=PARITY_ABS)


# Prefixes, batches, threads -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOOKING)
def test_questions_about_several_pictures_in_turn(models: Models, kind: str) -> None:
    """The second round computes questions and crops alone, in one slot: prefixes come from the store."""
    images = [picture((140 + 40 * number, 100), number) for number in range(3)]
    with opened(models, kind, max_batch=1) as session:
        fresh = []
        for image in images:
            session.forget_image()
            fresh.append(ask(session, image, OTHER))
        session.forget_image()
        for image in images:
            ask(session, image)
        for image, expected in zip(images, fresh, strict=True):
            answer = ask(session, image, OTHER)
            require_equal(answer, expected, REUSE_LOGITS_ABS)
            assert answer.tokens.rpn_rows == len(OTHER)
            assert answer.tokens.images_encoded == len(answer.boxes_xyxy_px) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_the_answers_of_each_alone(models: Models, kind: str) -> None:
    looks = KINDS[kind].rpn is not None
    policies = [EVERYWHERE, NOWHERE, None, EVERYWHERE] if looks else [None] * 4
    asked = [(picture((140 + 30 * n, 100), n % 3), AFTER if n % 2 else OTHER, policies[n]) for n in range(4)]
    with opened(models, kind, max_batch=4) as session:
        alone = []
        for image, after, policy in asked:
            session.forget_image()
            alone.append(ask(session, image, after, roi=policy))
        session.forget_image()
        streams = []
        for image, after, policy in asked:
            options = AnswerOptions(policy, STEPS, trace=True, budget=budget_of())
            stream = session._questions.stream_of(image, BEFORE, after, options)
            stream.submit()
            streams.append(stream)
        for stream, expected in zip(streams, alone, strict=True):
            require_equal(stream.finish(), expected, BATCH_LOGITS_ABS)


def budget_of() -> Any:
    from sdrpn.runtime.questions import Budget

    return Budget((4, TOKENS))


def test_threads_share_a_session(models: Models) -> None:
    images = [picture((140 + 30 * number, 100), number) for number in range(4)]
    with opened(models, "q-zoom-3", max_batch=3) as session, ThreadPoolExecutor(4) as threads:
        alone = [ask(session, image) for image in images]
        session.forget_image()
        together = list(threads.map(lambda image: ask(session, image), images * 2))
    for found, expected in zip(together, alone * 2, strict=True):
        require_equal(found, expected, BATCH_LOGITS_ABS)


def test_budgets_have_prefixes_of_their_own(models: Models) -> None:
    image = picture((300, 200))
    with opened(models, "q-zoom-gate") as session:
        small = ask(session, image, roi=None, image_tokens=(4, 16))
        large = ask(session, image, roi=None, image_tokens=(32, TOKENS))
        again = ask(session, image, roi=None, image_tokens=(4, 16))
    assert small.tokens.image <= 16 < large.tokens.image
    assert (again.tokens.image, again.tokens.images_encoded) == (small.tokens.image, 0)
    require_equal(again, small, REUSE_LOGITS_ABS)


# Tokens of the image that the second pass goes without --------------------------------------------------------------


def half_of_them(logits: np.ndarray, prune_above: int) -> np.ndarray:
    """In place of the official limit, which a random model keeps everything by."""
    assert logits.shape[1] > prune_above
    highest = logits.max(axis=0)
    return np.asarray(highest > np.median(highest))


def pruning(spec: ModelSpec) -> ModelSpec:
    """The same model where pictures of more than 8 tokens are pruned."""
    assert spec.rpn is not None
    return dataclasses.replace(spec, rpn=dataclasses.replace(spec.rpn, prune_above=8))


@pytest.mark.parametrize("dialect", ["fused", "primitive"])
def test_tokens_that_nothing_looks_at_are_left_out(
    models: Models, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdrpn.families.qwen.family.kept_source_cells", half_of_them)
    model, images = models.model("sd-rpn"), [picture((211, 333)), picture((140, 100), 2)]
    vision = with_image_tokens(qwen_vision_of(model.spec), 4, TOKENS)
    with opened(models, "sd-rpn", dialect, max_batch=1) as session:
        small = pruning(session.spec)
        monkeypatch.setattr(session._two_pass, "_spec", small)
        monkeypatch.setattr(model, "spec", small)
        for number, (image, after) in enumerate([(images[0], AFTER), (images[0], OTHER), (images[1], AFTER)] * 2):
            expected = reference_answer(
                model, image, BEFORE, after, roi=EVERYWHERE, max_new_tokens=STEPS, vision=vision, stop_ids=(301,)
            )
            answer = ask(session, image, after)
            assert answer.trace is not None
            assert answer.trace.kept_source is not None
            assert answer.tokens.pruned == answer.tokens.image - int(answer.trace.kept_source.sum()) > 0
            assert expected.keep_source is not None
            assert np.array_equal(answer.trace.kept_source, expected.keep_source)
            assert answer.token_ids == expected.token_ids
            np.testing.assert_allclose(answer.trace.step_logits, expected.step_logits, atol=PARITY_ABS)
            # The prefix is found in the store from the second question on; the picture is encoded for its tokens.
            known = number in (1, 3, 4, 5)
            assert answer.tokens.rpn_rows == (len(after) if known else answer.tokens.prompt)
            assert answer.tokens.images_encoded == 2


def test_a_look_at_a_picture_that_may_be_pruned_is_kept(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdrpn.families.qwen.family.kept_source_cells", half_of_them)
    image, options = picture((211, 333)), {"roi": EVERYWHERE, "image_tokens": (4, TOKENS)}
    with opened(models, "sd-rpn") as session:
        monkeypatch.setattr(session._two_pass, "_spec", pruning(session.spec))
        fresh = ask(session, image)
        session.forget_image()
        session.look_ids(image, BEFORE, AFTER, **options)  # type: ignore[arg-type]
        answer = ask(session, image)
    assert (answer.tokens.rpn_rows, answer.tokens.pruned) == (0, fresh.tokens.pruned)
    require_equal(answer, fresh, REUSE_LOGITS_ABS)


# The gate -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GATED)
def test_a_gate_below_its_threshold_leaves_the_plain_answer(models: Models, kind: str) -> None:
    image = picture((140, 100))
    with opened(models, kind) as session:
        scored = ask(session, image)
        assert scored.trace is not None
        score = scored.trace.gate_score
        assert score is not None
        plain = ask(session, image, roi=None)
        session.forget_image()
        ended = ask(session, image, roi=RoiPolicy(0.01, gate_threshold=float(np.nextafter(score, 1))))
        assert ended.tokens.gate_rows == ended.tokens.prompt
        assert ended.tokens.rpn_rows == 0
        assert ended.note is not None
        assert ended.note.startswith("nothing inserted: the gate's score is")
        require_equal(ended, plain, 0)
        at_it = ask(session, image, roi=RoiPolicy(0.01, gate_threshold=score))
        require_equal(at_it, scored, REUSE_LOGITS_ABS)


@pytest.mark.parametrize("kind", GATED)
def test_a_gate_that_decides_nothing_is_not_asked(models: Models, kind: str) -> None:
    image = picture((140, 100))
    with opened(models, kind) as session:
        always = ask(session, image, trace=False)
        never = ask(session, image, trace=False, roi=RoiPolicy(0.01, gate_threshold=1.5))
        plain = ask(session, image, trace=False, roi=None)
    assert (always.tokens.gate_rows, never.tokens.gate_rows, never.tokens.rpn_rows) == (0, 0, 0)
    assert len(always.boxes_xyxy_px) == 1
    assert never.token_ids == plain.token_ids


def test_a_look_says_what_the_gate_says(models: Models) -> None:
    image = picture((140, 100))
    options: dict[str, Any] = {"image_tokens": (4, TOKENS)}
    with opened(models, "q-zoom-3", parts="look") as session:
        open_gate = session.look_ids(image, BEFORE, AFTER, roi=RoiPolicy(0.01, gate_threshold=0.0), **options)
        shut_gate = session.look_ids(image, BEFORE, AFTER, roi=RoiPolicy(0.01, gate_threshold=1.0), **options)
    assert len(open_gate.boxes) == 1
    assert shut_gate.boxes == ()
    assert shut_gate.note is not None
    assert "below 1" in shut_gate.note
    assert shut_gate.gate_score == open_gate.gate_score
    assert open_gate.gate_score is not None
    np.testing.assert_allclose(shut_gate.roi_map, open_gate.roi_map, atol=LOOK_MAP_ABS)


@pytest.mark.parametrize("kind", LOOKING)
def test_an_answer_goes_on_from_a_look(models: Models, kind: str) -> None:
    image, options = picture((140, 100)), {"roi": EVERYWHERE, "image_tokens": (4, TOKENS)}
    with opened(models, kind) as session:
        fresh = ask(session, image)
        session.forget_image()
        look = session.look_ids(image, BEFORE, AFTER, **options)  # type: ignore[arg-type]
        answer = ask(session, image)
    assert look.boxes_xyxy_px == answer.boxes_xyxy_px
    assert answer.tokens.rpn_rows == 0
    assert answer.tokens.trunk_rows == answer.roi_token_count + 2 + len(AFTER)
    require_equal(answer, fresh, REUSE_LOGITS_ABS)


def test_the_model_s_own_gate_threshold_is_the_official_one(models: Models) -> None:
    with opened(models, "q-zoom-gate") as session:
        assert session.policy.gate_threshold == 0.05
        plan = session._questions.plan(RoiPolicy(0.2))
        assert plan.gate_threshold == 0.05
        assert session._questions.plan(None).gate_threshold is None


# Bad input ----------------------------------------------------------------------------------------------------------


def test_bad_pictures_and_budgets(models: Models) -> None:
    with opened(models, "q-zoom-gate") as session:
        with pytest.raises(BadImage, match=r"27 x 40 px; expected at least 28 px on each side"):
            ask(session, picture((27, 40)))
        with pytest.raises(BadImage, match=r"6000 x 29 px; expected a longer side of at most 200 times the shorter"):
            ask(session, picture((6000, 29)))
        for budget in ((3, 64), (64, 16)):
            with pytest.raises(BadInput, match=r"image tokens are .*; expected 4 <= least <= most"):
                ask(session, picture((100, 100)), image_tokens=budget)
        with pytest.raises(BadInput, match=r"image_tokens are 4 to 4096; this bundle has 2048 positions"):
            ask(session, picture((100, 100)), image_tokens=(4, 4096))
        wrong: Any
        for wrong in ((16,), [16, 64], (16.0, 64), "16:64"):
            with pytest.raises(BadInput, match=r"image_tokens is .*; expected the least and the most"):
                ask(session, picture((100, 100)), image_tokens=wrong)
        with pytest.raises(BadInput, match="resize is 'twice'; expected 'once' or 'official', or None"):
            ask(session, picture((100, 100)), resize="twice")
        with pytest.raises(ContextTooLong, match="prompt tokens"):
            ask(session, picture((2000, 2000)), image_tokens=(2046, 2046))
        assert ask(session, picture((100, 100))).token_ids  # the session goes on


def test_prompts_without_ids_around_the_image(models: Models) -> None:
    with opened(models, "q-zoom") as session, pytest.raises(BadInput, match="no ids on one side of the image"):
        session.answer_ids(picture((100, 100)), (), AFTER, roi=EVERYWHERE, image_tokens=(4, TOKENS))


def test_a_bare_model_has_no_second_look(models: Models) -> None:
    with opened(models, "bare") as session, pytest.raises(BadInput, match="no RPN"):
        ask(session, picture((100, 100)))


def test_models_of_a_fixed_number_of_tokens_say_so(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, threads=1) as session:
        pixels = np.zeros((40, 40, 3), np.uint8)
        with pytest.raises(BadInput, match=r"image_tokens are 4 to 8; this model turns every picture into 16 tokens"):
            session.answer_ids(pixels, (1,), (5,), roi=None, image_tokens=(4, 8))
        assert session.answer_ids(pixels, (1,), (5,), roi=None, image_tokens=(16, 16), max_new_tokens=1).token_ids


# Measuring and trying -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOOKING)
def test_every_case_that_the_model_has_is_measured(models: Models, kind: str) -> None:
    rpn = KINDS[kind].rpn
    assert rpn is not None
    cases = bench_cases(KINDS[kind], CASES)
    names = [case.name for case in cases]
    gates = ["gate-skips"] if rpn.gate_layers else []
    assert names == ["plain", *gates, "no-box", "one-box", "second-question"]
    with pytest.raises(BadInput, match="this bundle's model has no case two-box; expected some of plain"):
        bench_cases(KINDS[kind], ["plain", "two-box"])
    with opened(models, kind) as session:
        side = SessionSide("found", session, 2)
        for case in cases:
            stages = side.run(case).stages_s
            asks = rpn.gate_layers > 0 and case.name != "plain"
            assert (stages["gate"] > 0) == asks
            assert (stages["crop trunk"] > 0) == (case.name == "one-box")


@pytest.mark.parametrize("kind", ["q-zoom-gate", "q-zoom-3", "bare"])
def test_every_graph_is_tried(models: Models, kind: str) -> None:
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.runtime.backends import open_backend

    bundle = open_bundle(models.bundle(kind))
    variant = bundle.variant("fused-fp32")
    gates = list(smoke_test_graphs(bundle, variant, variant, open_backend("onnxruntime", 1)))
    assert {gate.graph for gate in gates} == set(variant.graphs)
    assert all(gate.ok for gate in gates)
