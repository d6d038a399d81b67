"""Maps, sinks, boxes and the gate, compared with the official functions and runs."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import BadInput, RunFailed
from sdrpn.families.qwen.grid import ResizedGrid
from sdrpn.families.qwen.presets import preset
from sdrpn.families.qwen.resize import PixelBudget
from sdrpn.families.qwen.sinks import border_kept, not_sinks
from sdrpn.families.qwen.zoom import crop_keep_cells, decide_zoom, surrounding_box
from sdrpn.method.gate import gate_score, looks_again
from sdrpn.method.roi import blur, roi_map
from sdrpn.method.spec import Scheme
from tests.families.qwen.official import map_cases, run_named, runs, vision_3, vision_25
from tests.tolerances import ROI_MAP_ABS

SCHEMES: dict[str, Scheme] = {"qzoom": "q-zoom", "sdrpn": "sd-rpn"}


@pytest.mark.parametrize("name", SCHEMES)
def test_maps_lead_to_the_official_boxes(name: str) -> None:
    cases = map_cases(name)
    assert len(cases) >= 40
    for case in cases:
        hw = case.logits.shape
        keep = border_kept((hw[0], hw[1]), SCHEMES[name])
        fired = blur(roi_map(case.logits) * keep) > np.float32(case.facts["thr"])
        box = surrounding_box(fired)
        assert int(fired.sum()) == case.facts["cells"], case.facts
        assert box == (tuple(case.facts["box_cells"]) if case.facts["cells"] else None), case.facts


@pytest.mark.parametrize("name", runs("gateon", "sdrpn"))
def test_runs_are_followed_from_logits_to_crop(name: tuple[str, str, str]) -> None:
    run = run_named(name)
    arrays, scheme = run.arrays, SCHEMES.get(run.variant, "q-zoom")
    grid = ResizedGrid(_size_of(run.picture), run.vision.budget)
    assert grid.hw == run.hw
    keep = arrays["sink_mask_keep"] if "sink_mask_keep" in arrays else border_kept(grid.hw, scheme)
    decision = decide_zoom(arrays["roi_logits"], keep, grid, float(arrays["roi_conf_thresh"]), scheme)
    assert np.abs(decision.blurred_map - arrays["roi_map_blurred"]).max() <= ROI_MAP_ABS
    if "box_cells" not in arrays:
        assert len(decision.boxes_cells) == 0
        assert not decision.crops
        return
    assert decision.boxes_cells.tolist() == [arrays["box_cells"].tolist()]
    (crop,) = decision.crops
    if "crop_grid_thw" not in arrays:  # SD-RPN gave up on a crop under 28 px; here it grows, as Q-Zoom's
        assert run.name == "small_1"
        assert crop.box_xyxy_px == (0, 52, 28, 80)
        return
    assert list(crop.box_xyxy_px) == arrays["box_px"].tolist()
    hw = grid.crop_hw(crop.box_xyxy_px)
    assert hw == tuple(arrays["crop_grid_thw"][0, 1:] // 2)
    if scheme == "sd-rpn":
        assert crop.keep_cells is not None
        assert crop.keep_cells.ravel().tolist() == arrays["crop_mask_flat"].tolist()
    else:
        assert crop.keep_cells is None
    assert crop.token_count(hw) == (int(arrays["crop_mask_flat"].sum()) if scheme == "sd-rpn" else hw[0] * hw[1])


@pytest.mark.parametrize("name", runs("gateon", "gateskip"))
def test_the_gate_s_score(name: tuple[str, str, str]) -> None:
    arrays = run_named(name).arrays
    score = gate_score(float(arrays["gate_logit"][0]))
    assert abs(score - float(arrays["gate_score"][0])) <= ROI_MAP_ABS
    assert looks_again(score, -1)
    assert not looks_again(score, 1.01)


def test_a_score_equal_to_the_threshold_looks_again() -> None:
    assert looks_again(0.5, 0.5)
    assert not looks_again(0.49999, 0.5)
    with pytest.raises(RunFailed, match="the gate's score is nan"):
        looks_again(float("nan"), 0.5)
    with pytest.raises(BadInput, match="the gate's threshold is nan"):
        looks_again(0.5, float("nan"))


def test_borders_of_large_maps_are_left_out() -> None:
    assert border_kept((16, 16), "q-zoom").all()
    assert np.argwhere(~border_kept((17, 16), "q-zoom")).tolist() == [
        [0, 0],
        [0, 1],
        [0, 2],
        [0, 3],
        [1, 0],
        [2, 0],
        [3, 0],
    ]
    assert (~border_kept((2, 200), "q-zoom")).sum() == 50
    assert border_kept((24, 32), "sd-rpn").all()
    assert (~border_kept((25, 32), "sd-rpn")).sum() == 6 + 8 - 1
    # Fewer than four rows: SD-RPN leaves the column alone, Q-Zoom takes its first cell, which the row takes as well.
    assert (~border_kept((3, 300), "sd-rpn")).sum() == 75


def test_cells_of_the_first_token_are_sinks_from_three_quarters_on() -> None:
    logits = np.array([[np.log(3.0), np.log(3.0) - 1e-3, 5.0, -5.0]], np.float32)
    assert not_sinks(logits).tolist() == [[False, True, False, True]]


def test_a_map_of_one_row_is_looked_at() -> None:
    grid = ResizedGrid((5600, 28), vision_25().budget)
    logits = np.full((1, 200), -9.0, np.float32)
    logits[0, 30:34] = 9.0
    decision = decide_zoom(logits, border_kept((1, 200), "q-zoom"), grid, 0.15, "q-zoom")
    assert decision.boxes_cells.tolist() == [[29, 0, 35, 1]]
    assert decision.crops[0].box_xyxy_px == (812, 0, 980, 28)


def test_a_crop_that_cannot_be_resized_is_said() -> None:
    grid = ResizedGrid((5599, 40), PixelBudget(28, 4 * 784, 400 * 784, 28))
    logits = np.full(grid.hw, 9.0, np.float32)
    logits[0] = 9.0
    decision = decide_zoom(logits, np.ones(grid.hw, np.bool_), grid, 0.15, "q-zoom")
    assert decision.crops[0].box_xyxy_px == (0, 0, 5599, 40)
    low = ResizedGrid((5599, 40), PixelBudget(28, 4 * 784, 400 * 784, 41))
    with pytest.raises(BadInput, match="the picture is 5599 x 40 px; expected at least 41 px"):
        decide_zoom(logits, np.ones(logits.shape, np.bool_), low, 0.15, "q-zoom")


def test_logits_of_another_grid_or_that_are_none() -> None:
    grid = ResizedGrid((280, 280), vision_25().budget)
    keep = np.ones((10, 10), np.bool_)
    with pytest.raises(BadInput, match=r"RoI logits have the shape \(9, 10\); expected \(10, 10\)"):
        decide_zoom(np.zeros((9, 10), np.float32), keep, grid, 0.15, "q-zoom")
    with pytest.raises(RunFailed, match="1 of 100 RoI logits are NaN"):
        decide_zoom(np.array([[np.nan] + [0.0] * 9] + [[0.0] * 10] * 9, np.float32), keep, grid, 0.15, "q-zoom")


def test_nothing_above_the_threshold() -> None:
    grid = ResizedGrid((280, 280), vision_25().budget)
    decision = decide_zoom(np.full((10, 10), -4.0, np.float32), np.ones((10, 10), np.bool_), grid, 0.15, "q-zoom")
    assert decision.crops == ()
    assert len(decision.boxes_cells) == 0
    assert decision.note == "nothing inserted: no cell is above 0.15, the highest is 0.018"


def test_cells_of_a_crop_on_the_mask() -> None:
    fired = np.zeros((6, 6), np.bool_)
    fired[1:3, 1:3] = fired[3, 3] = True
    kept = crop_keep_cells(fired, (1, 1, 4, 4), (6, 6))
    assert kept[:4, :4].sum() >= 12
    assert kept[5, 5]
    assert not kept[0, 5]
    assert not kept[5, 0]


def test_presets_are_the_official_ones() -> None:
    document = preset("document", family="qwen2.5-vl", scheme="q-zoom", llm_width=3584)
    assert (document.threshold, document.gate_threshold, document.image_tokens) == (0.125, 0.05, (256, 576))
    assert preset("scene", family="qwen3-vl", scheme="q-zoom", llm_width=2560).gate_threshold == 0.1
    assert preset("scene", family="qwen2.5-vl", scheme="sd-rpn", llm_width=2048).threshold == 0.15
    assert preset("scene", family="qwen2.5-vl", scheme="sd-rpn", llm_width=3584).threshold == 0.075
    assert preset("search", family="qwen2.5-vl", scheme="sd-rpn", llm_width=3584).gate_threshold is None
    with pytest.raises(BadInput, match="the preset 'poems' is unknown; expected one of scene, document"):
        preset("poems", family="qwen3-vl", scheme="q-zoom", llm_width=2560)


def test_both_families_grow_boxes_to_28_pixels() -> None:
    for vision in (vision_25(16, 120), vision_3(16, 120)):
        grid = vision.grid((100, 80))
        left, top, right, bottom = grid.box_px_from_cells((0, grid.hw[0] - 1, 1, grid.hw[0]))
        assert (right - left, bottom - top) == (28, 28)
        assert (left, bottom) == (0, 80)


@pytest.mark.parametrize(("scheme", "left"), [("q-zoom", 127), ("sd-rpn", 128)])
def test_a_box_at_the_right_border_begins_where_the_official_one_does(scheme: Scheme, left: int) -> None:
    """float32 puts the last of 15 columns of 960 pixels beyond them: Q-Zoom slides the box back, SD-RPN does not."""
    grid = vision_25(16, 120).grid((960, 509))
    logits = np.full(grid.hw, -20, np.float32)
    logits[2:5, 3:] = 20
    decision = decide_zoom(logits, np.ones(grid.hw, np.bool_), grid, 0.05, scheme)
    assert decision.crops[0].box_cells == (2, 1, 15, 6)
    assert decision.crops[0].box_xyxy_px == (left, 72, 960, 436)


def _size_of(path: object) -> tuple[int, int]:
    from PIL import Image

    with Image.open(str(path)) as picture:
        return picture.size
