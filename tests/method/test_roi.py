"""From a map to crops: the official outputs, the defects that are fixed, and borders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sdrpn.errors import BadInput, RunFailed
from sdrpn.method.geometry import PaddedGrid
from sdrpn.method.roi import (
    Crop,
    RoiDecision,
    RoiPolicy,
    blur,
    decide_crops,
    find_components,
    resize_features,
    roi_logits_from_scores,
    roi_map,
)
from tests.official_model import official_outputs
from tests.tolerances import RESIZED_FEATURES_ABS, ROI_MAP_ABS

G = 24
Float32 = npt.NDArray[np.float32]

# The official 3 x 3 expansion clamps to cell 23, exclusive, and so leaves out a cell of column or row 23 that fired.
# (threshold index, map index, box) -> (the official box, ours): the only rows of the official outputs that differ.
BOX_MISSES_FIRED_CELL = {
    (0, 20, 0): ((22, 0, 23, 2), (22, 0, 24, 2)),
    (0, 44, 1): ((21, 0, 23, 2), (21, 0, 24, 2)),
    (0, 68, 0): ((0, 21, 2, 23), (0, 21, 2, 24)),
    (0, 76, 1): ((21, 0, 23, 2), (21, 0, 24, 2)),
    (0, 76, 2): ((0, 21, 2, 23), (0, 21, 2, 24)),
    (2, 12, 0): ((21, 0, 23, 2), (21, 0, 24, 2)),
    (2, 44, 0): ((0, 21, 2, 23), (0, 21, 2, 24)),
}


@pytest.fixture(scope="module")
def roi_post(golden: Path) -> dict[str, npt.NDArray[Any]]:
    return dict(np.load(golden / "roi_post.npz"))


def over(image_wh: tuple[int, int]) -> PaddedGrid:
    """The official model's grid."""
    return PaddedGrid(image_wh, 336, G)


def logits_firing(*boxes: tuple[int, int, int, int], strong: float = 20.0) -> Float32:
    """Logits whose cells in `boxes` are certain and all others impossible; blur widens a block by a cell per side."""
    logits = np.full((G, G), -strong, np.float32)
    for x1, y1, x2, y2 in boxes:
        logits[y1:y2, x1:x2] = strong
    return logits


def fired_after_blur(logits: Float32, threshold: float) -> npt.NDArray[np.bool_]:
    return blur(roi_map(logits)) > threshold


# --- policy


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"threshold": 0}, "threshold is 0; expected"),
        ({"threshold": 1.0}, "threshold is 1.0"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": "0.15"}, "threshold is '0.15'"),
        ({"upscale": "crop"}, 'upscale is \'crop\'; expected "mask" or "bbox"'),
        ({"max_ratio": 2.0}, r'max_ratio \(2.0\) needs upscale="bbox"'),
        ({"upscale": "bbox", "max_ratio": 0}, "max_ratio is 0"),
        ({"upscale": "bbox", "max_ratio": -1.0}, "max_ratio is -1.0"),
        ({"upscale": "bbox", "max_ratio": float("inf")}, "max_ratio is inf"),
        ({"min_cells": 0}, "min_cells is 0"),
        ({"max_share": 0}, "max_share is 0"),
        ({"max_share": 1.5}, "max_share is 1.5; expected a number above 0, at most 1"),
        ({"max_share": "all"}, "max_share is 'all'"),
        ({"max_cells": 2.5}, "max_cells is 2.5"),
        ({"min_cells": 9, "max_cells": 8}, r"max_cells \(8\) is below min_cells \(9\)"),
    ],
)
def test_policy_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        RoiPolicy(**arguments)


def test_default_policy_is_the_published_one() -> None:
    assert RoiPolicy() == RoiPolicy(threshold=0.15, upscale="mask", max_ratio=None, min_cells=2, max_share=225 / 576)


# --- scores to a map


def test_scores_are_averaged_over_heads() -> None:
    scores = np.arange(3 * 4, dtype=np.float32).reshape(3, 4)
    assert roi_logits_from_scores(scores, (2, 2), head_dim=16).tolist() == [[4, 5], [6, 7]]


def test_single_head_scores_are_the_unscaled_dot_product() -> None:
    rng = np.random.default_rng(0)
    query, keys = rng.standard_normal((4, 1, 16)), rng.standard_normal((4, 9, 16))
    scores = ((query * keys).sum(-1) / 4.0).astype(np.float32)
    expected = (query * keys).sum((0, 2)).reshape(3, 3)
    found = roi_logits_from_scores(scores, (3, 3), head_dim=16, multi_head=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mse_scores_are_distributions() -> None:
    scores = np.array([[1000.0, 0, 0, 0], [0, 0, 0, 0]], np.float32)  # exp(1000) would overflow
    found = roi_logits_from_scores(scores, (2, 2), head_dim=16, loss="mse")
    np.testing.assert_allclose(found, [[0.625, 0.125], [0.125, 0.125]])


@pytest.mark.parametrize("shape", [(4, 5), (4, 0), (0, 9), (9,), (1, 4, 9)])
def test_scores_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"expected \(heads, 9\)"):
        roi_logits_from_scores(np.zeros(shape, np.float32), (3, 3), head_dim=16)


def test_sigmoid_of_extremes_does_not_overflow() -> None:
    found = roi_map(np.array([[-1e30, -200, 0, 200]], np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 0, 0.5, 1]], atol=1e-30)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_blur_keeps_a_constant(side: int) -> None:
    np.testing.assert_allclose(blur(np.full((side, side), 0.7, np.float32)), 0.7, atol=ROI_MAP_ABS)


def test_blur_mirrors_without_the_border() -> None:
    corner = np.zeros((3, 3), np.float32)
    corner[0, 0] = 1
    side, centre = np.exp(-0.5) / (1 + 2 * np.exp(-0.5)), 1 / (1 + 2 * np.exp(-0.5))
    found = blur(corner)
    np.testing.assert_allclose(found[0, 0], centre**2, atol=ROI_MAP_ABS)
    np.testing.assert_allclose(found[1, 1], side**2, atol=ROI_MAP_ABS)
    inner = np.zeros((3, 3), np.float32)
    inner[1, 1] = 1
    np.testing.assert_allclose(blur(inner)[0, 0], (2 * side) ** 2, atol=ROI_MAP_ABS)


# --- components


@pytest.mark.parametrize(
    ("rows", "boxes"),
    [
        (["..", ".."], []),
        (["#."], [(0, 0, 1, 1)]),
        (["#.", ".#"], [(0, 0, 2, 2)]),  # diagonals touch
        (["#.#"], [(0, 0, 1, 1), (2, 0, 3, 1)]),
        ([".#", "..", "#."], [(1, 0, 2, 1), (0, 2, 1, 3)]),  # raster order, not left to right
        (["..#", "#.#", "###"], [(0, 0, 3, 3)]),  # found twice, joined below
    ],
)
def test_components(rows: list[str], boxes: list[tuple[int, int, int, int]]) -> None:
    fired = np.array([[cell == "#" for cell in row] for row in rows])
    assert [part.box_cells for part in find_components(fired)] == boxes


@given(hnp.arrays(bool, (G, G)))
def test_components_are_the_fired_cells_once(fired: npt.NDArray[np.bool_]) -> None:
    cells = [tuple(cell) for part in find_components(fired) for cell in part.cells_yx.tolist()]
    assert len(cells) == len(set(cells))
    assert set(cells) == {tuple(cell) for cell in np.argwhere(fired).tolist()}


# --- the official outputs


def test_blurred_maps_equal_the_official(roi_post: dict[str, npt.NDArray[Any]]) -> None:
    for logits, expected in zip(roi_post["roi_logits"], roi_post["blurred_sigmoid"], strict=True):
        np.testing.assert_allclose(blur(roi_map(logits)), expected, rtol=0, atol=ROI_MAP_ABS)


def test_boxes_equal_the_official(roi_post: dict[str, npt.NDArray[Any]]) -> None:
    official: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for ti, mi, _, *box in roi_post["boxes_ti_mi_bi_x1y1x2y2"].tolist():
        official.setdefault((ti, mi), []).append(tuple(box))
    different = {}
    for ti, mi, box_count, *_ in roi_post["meta_ti_mi_nbox_nregion_ncell"].tolist():
        ours = [tuple(box) for box in decide(roi_post, ti, mi, (336, 336)).boxes_cells.tolist()]
        theirs = official.get((ti, mi), [])
        assert len(ours) == len(theirs) == box_count
        different.update(
            {(ti, mi, bi): pair for bi, pair in enumerate(zip(theirs, ours, strict=True)) if len({*pair}) > 1}
        )
    assert different == BOX_MISSES_FIRED_CELL


def decide(roi_post: dict[str, npt.NDArray[Any]], ti: int, mi: int, image_wh: tuple[int, int], **policy: Any) -> Any:
    row = roi_post["map_index"].tolist().index(mi)
    threshold = float(roi_post["thresholds"][ti])
    return decide_crops(roi_post["roi_logits"][row], over(image_wh), RoiPolicy(threshold=threshold, **policy))


def test_source_boxes_equal_the_official(roi_post: dict[str, npt.NDArray[Any]]) -> None:
    """Under "bbox" with up to two boxes every official crop is ours, and one without pixels is dropped or repaired."""
    official: dict[tuple[int, int, int], list[tuple[int, ...] | None]] = {}
    for ti, mi, si, bi, *box in roi_post["src_boxes_ti_mi_si_bi_x1y1x2y2"].tolist():
        has_pixels = box[0] < box[2] and box[1] < box[3] and (ti, mi, bi) not in BOX_MISSES_FIRED_CELL
        official.setdefault((ti, mi, si), []).append(tuple(box) if has_pixels else None)
    compared = 0
    for (ti, mi, si), boxes in official.items():
        if len(boxes) > 2:
            continue
        width, height = roi_post["image_sizes_wh"][si].tolist()
        crops = [crop.box_xyxy_px for crop in decide(roi_post, ti, mi, (width, height), upscale="bbox").crops]
        assert [box for box in crops if box in boxes] == [box for box in boxes if box is not None]
        compared += sum(box is not None for box in boxes)
        assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for x1, y1, x2, y2 in crops)
    assert compared > 200


def test_masks_equal_the_official(roi_post: dict[str, npt.NDArray[Any]]) -> None:
    rows = roi_post["mask_ti_mi_si_surround4_src4_nkept"].tolist()
    for (ti, mi, si, _, _, _, _, x1, y1, x2, y2, kept), keep_cells in zip(rows, roi_post["mask_keep"], strict=True):
        width, height = roi_post["image_sizes_wh"][si].tolist()
        decision = decide(roi_post, ti, mi, (width, height))
        if x1 >= x2 or y1 >= y2:  # all of it in the padding
            assert decision.crops == ()
            continue
        (crop,) = decision.crops
        assert crop.box_xyxy_px == (x1, y1, x2, y2)
        np.testing.assert_array_equal(crop.keep_cells, keep_cells)
        assert crop.token_count((G, G)) == kept


CASES = ["land_1box", "odd_2box", "port_2box", "sq_0box", "sq_big_0box", "wide_3box"]
IMAGE_SIZES_WH = [(640, 480), (517, 389), (300, 900), (336, 336), (336, 336), (1280, 720)]
VARIANTS = {
    "bbox_t0.15": RoiPolicy(upscale="bbox"),
    "mask_t0.15": RoiPolicy(),
    "bbox_t0.15_r2.0": RoiPolicy(upscale="bbox", max_ratio=2.0),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("case", "image_wh"), list(zip(CASES, IMAGE_SIZES_WH, strict=True)))
def test_cases_equal_the_official(golden: Path, case: str, image_wh: tuple[int, int], variant: str) -> None:
    expected = official_outputs(golden, case)
    decision = decide_crops(expected["roi_logits"], over(image_wh), VARIANTS[variant])
    np.testing.assert_allclose(decision.blurred_map, expected["blurred_map"], rtol=0, atol=ROI_MAP_ABS)
    np.testing.assert_array_equal(decision.boxes_cells, expected[f"{variant}/bboxes_feat"])
    assert sum(crop.token_count((G, G)) for crop in decision.crops) == expected[f"{variant}/n_inserted"]
    if decision.crops:
        boxes = [crop.box_xyxy_px for crop in decision.crops]
        np.testing.assert_array_equal(boxes, expected[f"{variant}/bboxes_src"])
    if f"{variant}/mask_keep" in expected:
        np.testing.assert_array_equal(decision.crops[0].keep_cells, expected[f"{variant}/mask_keep"])


# --- regions to crops


@pytest.mark.parametrize("upscale", ["mask", "bbox"])
@pytest.mark.parametrize(
    ("logits", "note"),
    [
        (np.full((G, G), -20, np.float32), "no cell is above 0.15, the highest is 2.06e-09"),
        (np.full((G, G), 20, np.float32), "0 regions of fewer than 2 cells, 1 region of more than 225"),
        (logits_firing((5, 5, 6, 6)), "1 region of fewer than 2 cells, 0 regions of more than 225"),
    ],
)
def test_nothing_to_zoom_on(logits: Float32, note: str, upscale: Any) -> None:
    decision = decide_crops(logits, over((640, 480)), RoiPolicy(upscale=upscale))
    assert decision.crops == ()
    assert decision.boxes_cells.shape == (0, 4)
    assert decision.note == f"nothing inserted: {note}"


@pytest.mark.parametrize("upscale", ["mask", "bbox"])
def test_one_region_is_shown_whole(upscale: Any) -> None:
    decision = decide_crops(logits_firing((5, 9, 8, 12)), over((640, 480)), RoiPolicy(upscale=upscale))
    assert decision.crops == (Crop((106, 133, 240, 266)),)
    assert decision.crops[0].token_count((G, G)) == G * G
    assert decision.note is None


def test_area_limits_are_the_policys() -> None:
    logits = logits_firing((2, 2, 3, 3), (10, 10, 14, 14))  # 1 and, blurred, 6 x 6 cells without two corners
    area = find_components(fired_after_blur(logits, 0.15))[1].area
    assert len(decide_crops(logits, over((336, 336)), RoiPolicy(min_cells=1)).boxes_cells) == 2
    assert len(decide_crops(logits, over((336, 336)), RoiPolicy(max_share=area / G**2)).boxes_cells) == 1
    assert len(decide_crops(logits, over((336, 336)), RoiPolicy(max_share=(area - 1) / G**2)).boxes_cells) == 0


@pytest.mark.parametrize(("side", "cells"), [(24, 225), (12, 56), (16, 100)])
def test_the_largest_region_is_a_share_of_the_grid(side: int, cells: int) -> None:
    """The official 225 of 576 cells; on a small grid a number of cells could not be reached."""
    assert RoiPolicy().most_cells((side, side)) == cells
    logits = np.full((side, side), -20, np.float32)
    logits[1:-1, 1:-1] = 20
    decision = decide_crops(logits, PaddedGrid((336, 336), 14 * side, side), RoiPolicy())
    assert decision.crops == ()
    assert f"1 region of more than {cells}" in str(decision.note)


def test_a_limit_in_cells_still_counts_and_says_that_it_will_go() -> None:
    with pytest.warns(DeprecationWarning, match=r"max_cells \(10\) of RoiPolicy goes .*pass max_share"):
        policy = RoiPolicy(max_cells=10)
    assert policy.most_cells((24, 24)) == policy.most_cells((12, 12)) == 10


def test_threshold_is_strict() -> None:
    logits = np.zeros((G, G), np.float32)
    peak = float(blur(roi_map(logits)).max())
    assert decide_crops(logits, over((336, 336)), RoiPolicy(threshold=peak, max_share=1)).crops == ()
    assert decide_crops(logits, over((336, 336)), RoiPolicy(threshold=peak * 0.999, max_share=1)).crops != ()


def test_negative_threshold_is_relative_to_the_highest_logit() -> None:
    logits = np.full((G, G), 0.0001, np.float32)
    logits[5:9, 5:9] = 0.01
    decision = decide_crops(logits, over((336, 336)), RoiPolicy(threshold=-0.5))
    assert decision.boxes_cells.tolist() == [[5, 5, 9, 9]]
    assert decision.blurred_map.max() == pytest.approx(0.01)  # logits, not their sigmoid


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    logits = np.zeros((G, G), np.float32)
    logits[3, 4] = value
    with pytest.raises(RunFailed, match="1 of 576 RoI logits are NaN or infinite; expected finite numbers"):
        decide_crops(logits, over((336, 336)), RoiPolicy())


@pytest.mark.parametrize("shape", [(24, 23), (576,), (0, 0)])
def test_logits_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match=r"expected \(24, 24\), the grid over the image"):
        decide_crops(np.zeros(shape, np.float32), over((336, 336)), RoiPolicy())


def test_other_grids() -> None:
    logits = np.full((12, 12), -20, np.float32)
    logits[3:5, 3:5] = 20
    decision = decide_crops(logits, PaddedGrid((168, 168), 168, 12), RoiPolicy())
    assert decision.boxes_cells.tolist() == [[2, 2, 6, 6]]
    assert decision.crops == (Crop((28, 28, 84, 84)),)


@pytest.mark.parametrize(
    ("max_ratio", "grid_hw"),
    [
        (2.0, (8, 16)),
        (2, (8, 16)),
        (3.0, (12, 24)),
        (100, (12, 24)),  # an integer that must be scaled down crashes the official implementation
        (1e9, (12, 24)),
        (0.01, (1, 1)),
        (0.625, (2, 5)),  # round(2.5) is 2: Python rounds to even
    ],
)
def test_max_ratio(max_ratio: float, grid_hw: tuple[int, int]) -> None:
    logits = logits_firing((6, 6, 12, 8))  # blurred: 8 x 4 cells
    (crop,) = decide_crops(logits, over((336, 336)), RoiPolicy(upscale="bbox", max_ratio=max_ratio)).crops
    assert crop.grid_hw == grid_hw
    assert crop.token_count((G, G)) == grid_hw[0] * grid_hw[1]


# --- defects of the official implementation


def left_out(decision: RoiDecision) -> list[str]:
    return [region.reason for region in decision.left_out]


@pytest.mark.parametrize("upscale", ["mask", "bbox"])
def test_a_crop_of_padding_is_dropped(upscale: Any) -> None:
    """Officially a crop of the empty box (131, 0, 213, 0) of a 640x480 image is encoded: black."""
    decision = decide_crops(logits_firing((6, 0, 8, 1)), over((640, 480)), RoiPolicy(upscale=upscale))
    assert len(decision.boxes_cells) == 1
    assert decision.crops == ()
    assert decision.note == "nothing inserted: every region lies in the padding around the image"


def test_one_of_two_boxes_in_the_padding_is_dropped() -> None:
    logits = logits_firing((6, 0, 8, 1), (6, 10, 8, 12))
    decision = decide_crops(logits, over((640, 480)), RoiPolicy(upscale="bbox"))
    assert len(decision.boxes_cells) == 2
    assert len(decision.crops) == 1
    assert decision.note == "left out: 1 of 2 regions, only padding"
    assert left_out(decision) == ["only padding"]


def test_a_mask_of_padding_is_dropped() -> None:
    logits = logits_firing((3, 0, 5, 1), (12, 0, 14, 1))
    decision = decide_crops(logits, over((640, 480)), RoiPolicy())
    assert decision.crops == ()
    assert decision.note == "nothing inserted: every region lies in the padding around the image"


@pytest.mark.parametrize(
    ("cells", "official", "ours"),
    [
        ([(0, 23), (1, 23)], (22, 0, 23, 2), (22, 0, 24, 2)),
        ([(23, 0), (23, 1)], (0, 22, 2, 23), (0, 22, 2, 24)),
        ([(22, 23), (23, 23)], (22, 21, 23, 23), (22, 21, 24, 24)),
        ([(10, 22), (10, 21)], (20, 9, 23, 12), (20, 9, 23, 12)),  # contains what fired: left as it is
        ([(0, 0), (1, 0)], (0, 0, 2, 2), (0, 0, 2, 2)),
    ],
)
def test_minimum_box_contains_what_fired(
    cells: list[tuple[int, int]], official: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    logits = np.full((G, G), -1.0, np.float32)
    for y, x in cells:
        logits[y, x] = 4.0
    # A threshold on raw logits that only the chosen cells pass, whatever the blur makes of borders.
    blurred = np.sort(blur(logits).ravel())
    threshold = -float((blurred[-2] + blurred[-3]) / 2 / blurred[-1])
    decision = decide_crops(logits, over((336, 336)), RoiPolicy(threshold=threshold))
    assert {tuple(cell) for cell in np.argwhere(decision.blurred_map > -threshold * blurred[-1])} == set(cells)
    assert tuple(decision.boxes_cells[0]) == ours
    excluded = any(y >= official[3] or x >= official[2] for y, x in cells)
    assert (official != ours) == excluded


def test_more_than_two_boxes_say_why_nothing_is_inserted() -> None:
    logits = logits_firing((2, 8, 4, 10), (10, 8, 12, 10), (18, 8, 20, 10))
    decision = decide_crops(logits, over((336, 336)), RoiPolicy(upscale="bbox"))
    assert decision.crops == ()
    assert decision.note == (
        'nothing inserted: 3 regions, and upscale="bbox" shows at most 2; upscale="mask" or a higher threshold zooms'
    )
    assert left_out(decision) == ['upscale="bbox" shows at most 2 regions'] * 3
    merged = decide_crops(logits, over((336, 336)), RoiPolicy())
    assert (len(merged.crops), merged.left_out) == (1, ())


def test_an_oversize_region_does_not_drag_the_mask() -> None:
    """Officially the mask crop is the box around all regions: here the whole image."""
    large = np.array((0, 8, G, G))
    logits = logits_firing(tuple(large), (3, 2, 5, 4), (18, 2, 20, 4))
    decision = decide_crops(logits, over((336, 336)), RoiPolicy())
    assert decision.boxes_cells.tolist() == [[2, 1, 6, 5], [17, 1, 21, 5]]
    assert decision.crops[0].box_xyxy_px == (28, 14, 294, 70)
    assert decision.note == "left out: 1 region of more than 225 cells"
    (large_one,) = decision.left_out
    assert large_one.reason == "more than 225 cells"
    assert large_one.box_cells[2:] == (G, G)


def test_single_cells_stay_in_the_mask() -> None:
    logits = logits_firing((3, 2, 5, 4), (18, 2, 20, 4), (10, 20, 11, 21))
    decision = decide_crops(logits, over((336, 336)), RoiPolicy())
    assert len(decision.boxes_cells) == 2
    assert decision.crops[0].box_xyxy_px == (28, 14, 294, 294)
    assert decision.left_out == ()


def test_a_small_region_is_left_out_of_a_box() -> None:
    """The mask of several regions holds it; a box of another one does not."""
    decision = decide_crops(logits_firing((3, 2, 5, 4)), over((336, 336)), RoiPolicy(min_cells=100))
    assert decision.crops == ()
    assert left_out(decision) == ["fewer than 100 cells"]


@pytest.mark.parametrize("image_wh", [(1, 1), (1, 10_000), (10_000, 1)])
@pytest.mark.parametrize("upscale", ["mask", "bbox"])
def test_thin_images_have_crops_with_pixels(image_wh: tuple[int, int], upscale: Any) -> None:
    decision = decide_crops(logits_firing((10, 10, 13, 13)), over(image_wh), RoiPolicy(upscale=upscale))
    (x1, y1, x2, y2) = decision.crops[0].box_xyxy_px
    assert 0 <= x1 < x2 <= image_wh[0]
    assert 0 <= y1 < y2 <= image_wh[1]


@given(
    logits=hnp.arrays(np.float32, (G, G), elements=st.floats(-9, 3, width=32)),
    threshold=st.sampled_from([0.05, 0.15, 0.3, 0.6, -0.3]),
    image_wh=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    upscale=st.sampled_from(["mask", "bbox"]),
)
def test_every_fired_cell_of_an_accepted_region_lies_in_its_box(
    logits: Float32, threshold: float, image_wh: tuple[int, int], upscale: Any
) -> None:
    policy = RoiPolicy(threshold=threshold, upscale=upscale)
    decision = decide_crops(logits, over(image_wh), policy)
    limit = threshold if threshold > 0 else float(decision.blurred_map.max()) * -threshold
    parts = [part for part in find_components(decision.blurred_map > limit) if 2 <= part.area <= 225]
    assert len(parts) == len(decision.boxes_cells)
    for part, (x1, y1, x2, y2) in zip(parts, decision.boxes_cells, strict=True):
        assert 0 <= x1 < x2 <= G
        assert 0 <= y1 < y2 <= G
        assert (part.cells_yx >= (y1, x1)).all()
        assert (part.cells_yx < (y2, x2)).all()
    for crop in decision.crops:
        assert crop.token_count((G, G)) >= 1
        assert 0 <= crop.box_xyxy_px[0] < crop.box_xyxy_px[2] <= image_wh[0]
        assert 0 <= crop.box_xyxy_px[1] < crop.box_xyxy_px[3] <= image_wh[1]
    assert decision.crops or decision.note


# --- resizing features


@pytest.mark.parametrize("shape", [(1, 1), (1, 24), (24, 24), (5, 3), (24, 7)])
@pytest.mark.parametrize("grid_hw", [(1, 1), (3, 24), (24, 24), (18, 16), (7, 24)])
def test_resize_equals_torch(shape: tuple[int, int], grid_hw: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    features = np.random.default_rng(0).standard_normal((*shape, 5)).astype(np.float32)
    channels_first = torch.from_numpy(features).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(channels_first, size=grid_hw, mode="bilinear", align_corners=False)
    expected = expected[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(resize_features(features, grid_hw), expected, rtol=0, atol=RESIZED_FEATURES_ABS)


def test_mask_ties_equal_torch() -> None:
    """Values of exactly one half occur; which side of it rounding puts them decides tokens."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for rows in range(1, G + 1):
        for columns in range(1, G + 1):
            mask = (rng.random((rows, columns)) < 0.5).astype(np.float32)
            expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size=(G, G), mode="bilinear")
            np.testing.assert_array_equal(
                resize_features(mask[..., None], (G, G))[..., 0] > 0.5, expected[0, 0].numpy() > 0.5
            )


def test_resize_keeps_the_dtype() -> None:
    assert resize_features(np.ones((2, 2, 3), np.float16), (4, 4)).dtype == np.float16
