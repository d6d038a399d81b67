"""Sessions of both Qwen families compared with official runs: maps, scores, boxes, kept tokens, ids and logits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.export import ExportOptions, export_bundle
from sdrpn.families.registry import family_of
from sdrpn.images.image import open_image
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Session
from tests.families.qwen.official import Run, answers, run_named, write_checkpoint
from tests.tolerances import (
    GOLDEN_GATE_SCORE_ABS,
    GOLDEN_ROI_LOGITS_ABS,
    GOLDEN_STEP_LOGITS_ABS,
    REUSE_LOGITS_ABS,
)

DIALECTS = ("fused", "primitive")
RUNS = (*DIALECTS, "openvino")  # the last one with the graphs of the first
LOOKS_AGAIN = ("gateon", "gateon_reusepos", "nogate", "nogate_reusepos", "sdrpn")
# What a checkpoint says in each variant.
ENTRIES: dict[str, dict[str, Any]] = {
    "gateon_reusepos": {"reuse_src_pos": True},
    "nogate": {"enable_high_res": False},
    "nogate_reusepos": {"enable_high_res": False, "reuse_src_pos": True},
}
STEPS = 8


class Sessions:
    """A session for each model, in each of the variants of its config.json."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: dict[tuple[str, ...], Session] = {}

    def of(self, run: Run, dialect: str) -> Session:
        key = run.model, run.variant if run.variant in (*ENTRIES, "sdrpn") else "", dialect
        if key not in self._opened:
            bundle = self._bundle(run.model, key[1])
            backend = "onnxruntime"
            if dialect == "openvino":
                pytest.importorskip("openvino")
                backend, dialect = "openvino", "fused"
            self._opened[key] = Session.open(bundle, backend=backend, variant=f"{dialect}-fp32", threads=1)
        return self._opened[key]

    def close(self) -> None:
        for session in self._opened.values():
            session.close()

    def _bundle(self, model: str, variant: str) -> Path:
        checkpoint, bundle = (self._folder / f"{model}-{variant}{end}" for end in ("", "-bundle"))
        if not bundle.exists():
            write_checkpoint(model, checkpoint)
            path = checkpoint / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**config, **ENTRIES.get(variant, {})}), encoding="utf-8")
            scheme: Any = "sd-rpn" if variant == "sdrpn" else "auto"
            for dialect in DIALECTS:
                export_bundle(checkpoint, bundle, ExportOptions("fp32", dialect), scheme=scheme)  # type: ignore[arg-type]
        return bundle


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sessions]:
    opened = Sessions(tmp_path_factory.mktemp("official"))
    yield opened
    opened.close()


def policy_of(run: Run) -> RoiPolicy | None:
    if run.variant == "plain":
        return None
    gate = 1.01 if run.variant == "gateskip" else -1.0
    return RoiPolicy(float(run.arrays["roi_conf_thresh"]), gate_threshold=gate)


def asked(session: Session, run: Run, **options: Any) -> Answer:
    before, after = run.sides
    options = {"roi": policy_of(run), "image_tokens": run.tokens, "max_new_tokens": STEPS, "trace": True, **options}
    return session.answer_ids(run.picture, before, after, **options)


def difference(found: Any, expected: npt.NDArray[Any]) -> float:
    found = np.asarray(found)
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected).max())


def require_official(answer: Answer, run: Run, session: Session) -> None:
    """The official ids go on after a stop token."""
    assert answer.trace is not None
    ids = run.arrays["generated_ids"].tolist()
    stops = [place for place, token in enumerate(ids) if token in session.spec.prompt.eos_token_ids]
    count = stops[0] if stops else len(ids)
    assert list(answer.token_ids) == ids[:count]
    steps = answer.trace.step_logits
    assert difference(answer.trace.first_logits, run.arrays["first_step_logits"]) <= GOLDEN_STEP_LOGITS_ABS
    if "step_logits" in run.arrays:
        assert difference(steps, run.arrays["step_logits"][: len(steps)]) <= GOLDEN_STEP_LOGITS_ABS


@pytest.mark.parametrize("dialect", RUNS)
@pytest.mark.parametrize("name", answers("plain"))
def test_plain_answers(name: tuple[str, str, str], dialect: str, sessions: Sessions) -> None:
    run = run_named(name)
    session = sessions.of(run, dialect)
    session.forget_image()
    answer = asked(session, run)
    assert answer.tokens.image == len(run.arrays["vision_embeds"])
    assert answer.boxes_xyxy_px == ()
    require_official(answer, run, session)


@pytest.mark.parametrize("dialect", RUNS)
@pytest.mark.parametrize("name", answers("gateskip"))
def test_a_gate_that_ends_it(name: tuple[str, str, str], dialect: str, sessions: Sessions) -> None:
    run = run_named(name)
    session = sessions.of(run, dialect)
    session.forget_image()
    answer = asked(session, run)
    assert answer.trace is not None
    assert answer.trace.gate_score is not None
    assert abs(answer.trace.gate_score - float(run.arrays["gate_score"][0])) <= GOLDEN_GATE_SCORE_ABS
    assert (answer.trace.roi_logits, answer.boxes_xyxy_px, answer.tokens.rpn_rows) == (None, (), 0)
    require_official(answer, run, session)
    plain = asked(session, run, roi=None)
    assert plain.trace is not None
    assert answer.token_ids == plain.token_ids
    np.testing.assert_allclose(answer.trace.step_logits, plain.trace.step_logits, atol=REUSE_LOGITS_ABS)


@pytest.mark.parametrize("dialect", RUNS)
@pytest.mark.parametrize("name", answers(*LOOKS_AGAIN))
def test_second_looks(name: tuple[str, str, str], dialect: str, sessions: Sessions) -> None:
    run = run_named(name)
    session, arrays = sessions.of(run, dialect), run.arrays
    session.forget_image()
    answer = asked(session, run)
    trace = answer.trace
    assert trace is not None
    if run.variant.startswith("gate"):
        assert trace.gate_score is not None
        assert abs(trace.gate_score - float(arrays["gate_score"][0])) <= GOLDEN_GATE_SCORE_ABS
    else:
        assert trace.gate_score is None
    assert difference(trace.roi_logits, arrays["roi_logits"]) <= GOLDEN_ROI_LOGITS_ABS
    assert trace.decision is not None
    boxes = [arrays["box_cells"].tolist()] if "box_cells" in arrays else []
    assert trace.decision.boxes_cells.tolist() == boxes
    if "crop_grid_thw" not in arrays and boxes:
        # SD-RPN gives up on a crop under 28 px; here it grows, and the answer has it.
        assert run.name == "small_1"
        assert len(answer.boxes_xyxy_px) == 1
        return
    assert len(answer.boxes_xyxy_px) == len(boxes)
    if boxes:
        require_same_crop(answer, run, session)
    require_official(answer, run, session)


def require_same_crop(answer: Answer, run: Run, session: Session) -> None:
    """Pixels, grid, and which tokens of crop and image are there."""
    trace, arrays = answer.trace, run.arrays
    assert trace is not None
    assert list(answer.boxes_xyxy_px[0]) == arrays["box_px"].ravel().tolist()
    family = family_of(session.spec)
    grid = family.with_image_tokens(session.spec.vision, *run.tokens).grid(open_image(run.picture).size)
    hw = grid.crop_hw(answer.boxes_xyxy_px[0])
    assert list(hw) == (arrays["crop_grid_thw"].ravel()[1:] // 2).tolist()
    kept = hw[0] * hw[1]
    if "valid_token_mask_final" in arrays:
        assert trace.decision is not None
        (crop,) = trace.decision.crops
        assert crop.keep_cells is not None
        kept = int(crop.keep_cells.sum())
        pruned = 0 if trace.kept_source is None else int((~trace.kept_source).sum())
        assert pruned == answer.tokens.pruned
        assert int((~arrays["valid_token_mask_final"]).sum()) == pruned + hw[0] * hw[1] - kept
    assert answer.roi_token_count == kept


@pytest.mark.parametrize("name", answers(*LOOKS_AGAIN))
def test_a_second_question_reuses_the_prefix(name: tuple[str, str, str], sessions: Sessions) -> None:
    """Twice, and after another question: what is computed again equals what was kept."""
    run = run_named(name)
    session = sessions.of(run, "fused")
    session.forget_image()
    first = asked(session, run)
    before, after = run.sides
    session.answer_ids(run.picture, before, [*after[:2], *after[3:]], image_tokens=run.tokens, max_new_tokens=2)
    again = asked(session, run)
    assert first.trace is not None
    assert again.trace is not None
    assert again.token_ids == first.token_ids
    assert again.boxes_xyxy_px == first.boxes_xyxy_px
    np.testing.assert_allclose(again.trace.step_logits, first.trace.step_logits, atol=REUSE_LOGITS_ABS)
    assert again.tokens.rpn_rows == len(after)
    if run.variant.startswith("gate"):
        assert again.tokens.gate_rows == len(after)
    assert again.tokens.images_encoded <= len(again.boxes_xyxy_px) + (again.tokens.pruned > 0)
