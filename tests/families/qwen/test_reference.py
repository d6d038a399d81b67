"""The PyTorch model compared with every given run of the official implementations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.families.qwen.checkpoint import open_qwen
from sdrpn.families.qwen.torch_model import QwenModel, model_from_weights
from sdrpn.families.qwen.torch_reference import QwenAnswer, Zoom, reference_answer
from sdrpn.families.qwen.vision_spec import qwen_vision_of, with_image_tokens
from sdrpn.images.image import open_image
from sdrpn.method.gate import gate_score
from tests.families.qwen.official import WHOLE, Run, run_named, runs
from tests.tolerances import (
    GOLDEN_GATE_SCORE_ABS,
    GOLDEN_HIDDEN_ABS,
    GOLDEN_ROI_LOGITS_ABS,
    GOLDEN_STEP_LOGITS_ABS,
    GOLDEN_VISION_ABS,
)

# What a checkpoint says in each variant.
ENTRIES: dict[str, dict[str, Any]] = {
    "gateon_reusepos": {"reuse_src_pos": True},
    "nogate": {"enable_high_res": False},
    "nogate_reusepos": {"enable_high_res": False, "reuse_src_pos": True},
}
STEPS = 8
_opened: dict[tuple[str, str], QwenModel] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


def model_of(run: Run, folder: Path) -> QwenModel:
    """The checkpoint as a variant has it."""
    key = run.model, run.variant if run.variant in (*ENTRIES, "sdrpn") else ""
    if key not in _opened:
        there = folder / "-".join(key)
        shutil.copytree(WHOLE / run.model, there, ignore=shutil.ignore_patterns("cases"))
        path = there / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.chmod(0o644)
        there.chmod(0o755)
        path.write_text(json.dumps({**config, **ENTRIES.get(run.variant, {})}), encoding="utf-8")
        with open_qwen(there, "sd-rpn" if run.variant == "sdrpn" else "auto") as weights:
            _opened[key] = model_from_weights(weights)
    return _opened[key]


def answered(run: Run, folder: Path) -> QwenAnswer:
    model = model_of(run, folder)
    zoom = None
    if run.variant != "plain":
        zoom = Zoom(float(run.arrays["roi_conf_thresh"]), 1.01 if run.variant == "gateskip" else -1.0)
    before, after = run.sides
    return reference_answer(
        model,
        open_image(run.picture),
        before,
        after,
        zoom=zoom,
        max_new_tokens=STEPS,
        vision=with_image_tokens(qwen_vision_of(model.spec), *run.tokens),
    )


def difference(found: Any, expected: npt.NDArray[Any]) -> float:
    found = np.asarray(found)
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected).max())


def require_same_answer(answer: QwenAnswer, arrays: dict[str, npt.NDArray[Any]]) -> None:
    assert answer.token_ids == tuple(arrays["generated_ids"])
    assert difference(answer.step_logits, arrays["step_logits"]) <= GOLDEN_STEP_LOGITS_ABS
    assert difference(answer.step_logits[0], arrays["first_step_logits"]) <= GOLDEN_STEP_LOGITS_ABS


@pytest.mark.parametrize("name", runs("plain"))
def test_plain_answers(name: tuple[str, str, str], folder: Path) -> None:
    run = run_named(name)
    answer = answered(run, folder)
    assert difference(answer.look.embeds, run.arrays["vision_embeds"]) <= GOLDEN_VISION_ABS
    assert len(answer.look.deepstack) == len(run.arrays.get("deepstack", ()))
    for feature, expected in zip(answer.look.deepstack, run.arrays.get("deepstack", ()), strict=True):
        assert difference(feature, expected) <= GOLDEN_VISION_ABS
    require_same_answer(answer, run.arrays)


@pytest.mark.parametrize("name", runs("gateskip"))
def test_a_gate_that_ends_it(name: tuple[str, str, str], folder: Path) -> None:
    run = run_named(name)
    answer = answered(run, folder)
    assert answer.gate_logit is not None
    assert abs(gate_score(answer.gate_logit) - float(run.arrays["gate_score"][0])) <= GOLDEN_GATE_SCORE_ABS
    assert answer.roi_logits is None
    assert answer.second is None
    require_same_answer(answer, run.arrays)


@pytest.mark.parametrize("name", runs("gateon", "gateon_reusepos", "nogate", "nogate_reusepos", "sdrpn"))
def test_second_looks(name: tuple[str, str, str], folder: Path) -> None:
    run = run_named(name)
    arrays, answer = run.arrays, answered(run, folder)
    if run.variant.startswith("gate"):
        assert answer.gate_logit is not None
        assert abs(gate_score(answer.gate_logit) - float(arrays["gate_score"][0])) <= GOLDEN_GATE_SCORE_ABS
    else:
        assert answer.gate_logit is None
    assert difference(answer.roi_logits, arrays["roi_logits"]) <= GOLDEN_ROI_LOGITS_ABS
    if "tap_hidden" in arrays:
        assert difference(answer.tap, arrays["tap_hidden"]) <= GOLDEN_HIDDEN_ABS
    if "sink_mask_keep" in arrays:
        assert answer.kept is not None
        assert np.array_equal(answer.kept, arrays["sink_mask_keep"])
    assert answer.decision is not None
    boxes = [arrays["box_cells"].tolist()] if "box_cells" in arrays else []
    assert answer.decision.boxes_cells.tolist() == boxes
    if "crop_grid_thw" not in arrays and boxes:
        # SD-RPN gives up on a crop under 28 px; here it grows, and the answer has it.
        assert run.name == "small_1"
        assert answer.crop_look is not None
        return
    assert (answer.second is None) == (not boxes)
    if answer.second is not None:
        assert answer.crop_look is not None
        assert answer.second.kept_rows.shape == arrays["pass2_position_ids"].shape
        if "crop_embeds" in arrays:
            assert difference(answer.crop_look.embeds, arrays["crop_embeds"]) <= GOLDEN_VISION_ABS
        if "valid_token_mask_final" in arrays:
            assert np.array_equal(answer.second.kept, arrays["valid_token_mask_final"])
    require_same_answer(answer, arrays)
