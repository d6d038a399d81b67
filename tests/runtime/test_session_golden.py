"""The runtime against the reference implementation's own outputs, through the public interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sdrpn.export import ExportOptions, export_bundle
from sdrpn.runtime import RoiPolicy, Session
from tests.official_model import official_outputs
from tests.tolerances import GOLDEN_ROI_LOGITS_ABS, GOLDEN_STEP_LOGITS_ABS

CASES = ("land_1box", "odd_2box", "port_2box", "sq_0box", "sq_big_0box", "wide_3box")
POLICIES = {
    "bbox_t0.15": RoiPolicy(threshold=0.15, upscale="bbox"),
    "mask_t0.15": RoiPolicy(threshold=0.15, upscale="mask"),
    "bbox_t0.15_r2.0": RoiPolicy(threshold=0.15, upscale="bbox", max_ratio=2.0),
}


@pytest.fixture(scope="module", params=["fused", "primitive", "openvino"])
def session(
    request: pytest.FixtureRequest, golden: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    bundle = tmp_path_factory.mktemp("golden") / "bundle"
    dialect, backend = request.param, "onnxruntime"
    if request.param == "openvino":
        pytest.importorskip("openvino")
        dialect, backend = "fused", "openvino"
    export_bundle(golden / "tiny_K3T3", bundle, ExportOptions("fp32", dialect))
    with Session.open(bundle, backend=backend, threads=1) as opened:
        yield opened


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden: Path) -> tuple[Path, dict[str, np.ndarray]]:
    return golden / "tiny_K3T3" / f"{request.param}.png", official_outputs(golden, request.param)


def split(ids: np.ndarray) -> tuple[list[int], list[int]]:
    at = int(np.flatnonzero(ids == -200)[0])
    return ids[:at].tolist(), ids[at + 1 :].tolist()


def assert_steps(found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found - expected).max()
    assert difference <= GOLDEN_STEP_LOGITS_ABS, f"step logits differ by {difference:.2e}"


def test_plain(session: Session, case: tuple[Path, dict[str, np.ndarray]]) -> None:
    image, expected = case
    before, after = split(expected["input_ids"])
    answer = session.answer_ids(image, before, after, roi=None, max_new_tokens=8, trace=True)
    assert answer.token_ids == tuple(expected["plain_generated_ids"][1:])
    assert answer.trace is not None
    assert_steps(answer.trace.step_logits, expected["plain_step_logits"])


@pytest.mark.parametrize("variant", POLICIES)
def test_two_passes(session: Session, case: tuple[Path, dict[str, np.ndarray]], variant: str) -> None:
    image, expected = case
    before, after = split(expected["input_ids"])
    answer = session.answer_ids(image, before, after, roi=POLICIES[variant], max_new_tokens=8, trace=True)
    assert answer.trace is not None
    assert answer.trace.roi_logits is not None
    assert answer.trace.decision is not None
    difference = np.abs(answer.trace.roi_logits - expected["roi_logits"]).max()
    assert difference <= GOLDEN_ROI_LOGITS_ABS, f"RoI logits differ by {difference:.2e}"
    np.testing.assert_array_equal(answer.trace.decision.boxes_cells, expected[f"{variant}/bboxes_feat"])
    inserted = int(expected[f"{variant}/n_inserted"])
    assert answer.roi_token_count == inserted
    if inserted:
        np.testing.assert_array_equal(answer.boxes_xyxy_px, expected[f"{variant}/bboxes_src"])
    else:
        assert answer.boxes_xyxy_px == ()
    if inserted and f"{variant}/mask_keep" in expected:
        np.testing.assert_array_equal(answer.trace.decision.crops[0].keep_cells, expected[f"{variant}/mask_keep"])
    assert answer.token_ids == tuple(expected[f"{variant}/generated_ids"][1:])
    assert_steps(answer.trace.first_logits, expected[f"{variant}/first_step_logits"])
    assert_steps(answer.trace.step_logits, expected[f"{variant}/step_logits"])


@pytest.mark.parametrize("variant", POLICIES)
def test_a_look_has_the_boxes_of_the_answer(
    session: Session, case: tuple[Path, dict[str, np.ndarray]], variant: str
) -> None:
    image, expected = case
    before, after = split(expected["input_ids"])
    session.forget_image()
    look = session.look_ids(image, before, after, roi=POLICIES[variant])
    session.forget_image()
    answer = session.answer_ids(image, before, after, roi=POLICIES[variant], max_new_tokens=1)
    assert look.boxes_xyxy_px == answer.boxes_xyxy_px
    assert look.note == answer.note
    np.testing.assert_array_equal(look.roi_map, answer.roi_map)
    if int(expected[f"{variant}/n_inserted"]):
        np.testing.assert_array_equal(look.boxes_xyxy_px, expected[f"{variant}/bboxes_src"])
