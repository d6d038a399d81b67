"""What rounding a part costs, against a model whose parts are rounded one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdrpn.calibration.sensitivity import ALL, Asked, Cost, measure_costs, parts_of
from sdrpn.calibration.sensitivity_picture import draw_costs
from sdrpn.checkpoint import open_checkpoint
from sdrpn.method.roi import RoiPolicy
from sdrpn.model.base import SdRpnModel, model_from_checkpoint
from sdrpn.text.prompt import Prompt
from tests.pictures import photo

QUESTIONS = [
    Asked(Image.fromarray(photo()), Prompt((1, 5, 9), after), RoiPolicy(), 4) for after in ((7, 11, 12), (30, 8, 40))
]


@pytest.fixture(scope="module")
def model(text_checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(text_checkpoint) as checkpoint:
        return model_from_checkpoint(checkpoint)


def same(matrix: np.ndarray) -> np.ndarray:
    return matrix.astype(np.float32)


def nothing(matrix: np.ndarray) -> np.ndarray:
    return np.zeros_like(matrix, dtype=np.float32)


def test_parts_are_those_that_exports_name(model: SdRpnModel) -> None:
    parts = parts_of(model)
    assert list(parts) == ["vision", "layers.0", "layers.1", "layers.2", "layers.3", "rpn", "lm_head"]
    assert [len(parts[name]) for name in ("layers.0", "rpn", "lm_head")] == [7, 9, 1]


def test_rounding_that_changes_nothing_costs_nothing(model: SdRpnModel) -> None:
    costs = list(measure_costs(model, QUESTIONS, {"same": same}, ["layers.1", "rpn"]))
    assert [cost.part for cost in costs] == ["layers.1", "rpn"]
    for cost in costs:
        figures = cost.roi_cosine, cost.roi_cosine_min, cost.box_iou, cost.same_decision, cost.same_answer
        assert figures == pytest.approx((1, 1, 1, 1, 1))


def test_only_the_parts_below_the_map_move_it(model: SdRpnModel) -> None:
    costs = {cost.part: cost for cost in measure_costs(model, QUESTIONS, {"nothing": nothing})}
    for part in ("vision", "layers.0", "layers.1", "rpn"):
        assert costs[part].roi_cosine < 0.9999, part  # type: ignore[operator]
    for part in ("layers.2", "layers.3", "lm_head"):  # above the tap
        assert costs[part].roi_cosine == pytest.approx(1), part
    assert costs["lm_head"].same_answer == 0


def test_the_model_is_as_before(model: SdRpnModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(measure_costs(model, QUESTIONS[:1], {"nothing": nothing}, ["rpn"], together=["layers.0", "lm_head"]))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_parts_at_once_and_progress(model: SdRpnModel) -> None:
    told: list[tuple[int, int]] = []
    costs = list(
        measure_costs(
            model, QUESTIONS, {"same": same}, ["rpn"], together=["layers.0"], advance=lambda *at: told.append(at)
        )
    )
    assert [cost.part for cost in costs] == ["rpn", ALL]
    assert told == [(number, 6) for number in range(1, 7)]


def test_the_picture_has_a_row_a_part_and_a_column_a_choice() -> None:
    costs = [
        Cost(part, choice, 10, cosine, cosine, 1.0, 1.0, 0.5)
        for part, cosine in (("layers.0", 0.9), ("lm_head", None))
        for choice in ("int8", "int4")
    ]
    picture = draw_costs(costs)
    colours = {picture.getpixel((96 + 4, 64 + 4)), picture.getpixel((96 + 4, 64 + 22 + 4))}
    assert colours == {(222, 88, 70), (60, 62, 66)}  # as bad as the scale goes; not known
