"""The PyTorch model against outputs of the official SD-RPN implementation, both passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sdrpn.checkpoint import open_checkpoint
from sdrpn.method.roi import RoiPolicy
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.reference import ReferenceAnswer, reference_answer
from tests.official_model import official_outputs
from tests.tolerances import GOLDEN_HIDDEN_ABS, GOLDEN_ROI_LOGITS_ABS, GOLDEN_STEP_LOGITS_ABS

CASES = ("land_1box", "odd_2box", "port_2box", "sq_0box", "sq_big_0box", "wide_3box")
VARIANTS = {
    "bbox_t0.15": RoiPolicy(0.15, "bbox"),
    "mask_t0.15": RoiPolicy(0.15, "mask"),
    "bbox_t0.15_r2.0": RoiPolicy(0.15, "bbox", max_ratio=2.0),
}
IMAGE_ID = -200
NEW_TOKENS = 8


@dataclass(frozen=True)
class Case:
    folder: Path
    name: str
    outputs: dict[str, NDArray[Any]]

    def answer(self, model: SdRpnModel, roi: RoiPolicy | None) -> ReferenceAnswer:
        ids = self.outputs["input_ids"].tolist()
        place = ids.index(IMAGE_ID)
        image = self.folder / f"{self.name}.png"
        return reference_answer(model, image, ids[:place], ids[place + 1 :], roi=roi, max_new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def model(golden: Path) -> Iterator[SdRpnModel]:
    with open_checkpoint(golden / "tiny_K3T3") as checkpoint:
        yield model_from_checkpoint(checkpoint)


@pytest.fixture(params=CASES)
def case(golden: Path, request: pytest.FixtureRequest) -> Case:
    return Case(golden / "tiny_K3T3", request.param, official_outputs(golden, request.param))


def largest_difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0.0))


def test_plain_answers_are_equal(model: SdRpnModel, case: Case) -> None:
    answer = case.answer(model, None)
    assert answer.token_ids == tuple(case.outputs["plain_generated_ids"][1:])
    assert largest_difference(answer.step_logits, case.outputs["plain_step_logits"]) < GOLDEN_STEP_LOGITS_ABS
    assert answer.roi_logits is None
    assert answer.roi_token_count == 0


def test_the_first_pass_is_equal(model: SdRpnModel, case: Case) -> None:
    answer = case.answer(model, RoiPolicy())
    assert answer.roi_logits is not None
    assert answer.tap is not None
    assert largest_difference(answer.image_embeds[:8], case.outputs["image_embeds_head"]) < GOLDEN_HIDDEN_ABS
    assert largest_difference(answer.tap[-8:], case.outputs["tap_hidden_last8"]) < GOLDEN_HIDDEN_ABS
    assert largest_difference(answer.roi_logits, case.outputs["roi_logits"]) < GOLDEN_ROI_LOGITS_ABS


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_second_pass_is_equal(model: SdRpnModel, case: Case, variant: str) -> None:
    expected = {key.removeprefix(f"{variant}/"): value for key, value in case.outputs.items() if variant in key}
    answer = case.answer(model, VARIANTS[variant])
    decision = answer.decision
    assert decision is not None
    np.testing.assert_array_equal(decision.boxes_cells, expected["bboxes_feat"])
    assert answer.roi_token_count == expected["n_inserted"]
    if answer.roi_token_count:
        np.testing.assert_array_equal([crop.box_xyxy_px for crop in decision.crops], expected["bboxes_src"])
    if "mask_keep" in expected:
        (crop,) = decision.crops
        assert crop.keep_cells is not None
        np.testing.assert_array_equal(crop.keep_cells, expected["mask_keep"])
    assert answer.token_ids == tuple(expected["generated_ids"][1:])
    assert largest_difference(answer.step_logits, expected["step_logits"]) < GOLDEN_STEP_LOGITS_ABS


def test_parameters_are_those_of_the_checkpoint_and_frozen(model: SdRpnModel) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.parameters())
