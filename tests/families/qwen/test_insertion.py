"""Second passes: ids, positions and what is dropped, compared with the official runs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.families.qwen.positions import chunked_axes, interleaved_axes, positions_of_spans, positions_on_source
from sdrpn.families.qwen.pruning import kept_source_cells
from sdrpn.families.registry import family_of
from sdrpn.method.spec import Scheme
from tests.families.qwen.models import SDRPN, spec_25
from tests.families.qwen.official import END, IMAGE, Run, map_cases, run_named, runs
from tests.families.qwen.second_pass import SecondPass, first_positions, second_pass
from tests.tolerances import FRACTIONAL_POSITION_ABS

START = 302


def _second_pass(run: Run, scheme: Scheme, **more: Any) -> SecondPass:
    before, after = run.sides
    height, width = (run.arrays["crop_grid_thw"][0, 1:] // 2).tolist()
    return second_pass(scheme, before, run.hw, after, (height, width), image_id=IMAGE, **more)


@pytest.mark.parametrize("name", runs("plain"))
def test_positions_of_the_first_pass(name: tuple[str, str, str]) -> None:
    plain = run_named(name).arrays
    ids = plain["input_ids"].tolist()
    h, w = (plain["image_grid_thw"][0, 1:] // 2).tolist()
    before = ids.index(IMAGE)
    found = first_positions(before, (h, w), len(ids) - before - h * w)
    assert np.array_equal(found.rows, plain["position_ids"])
    assert found.following == plain["decode_position_ids"][0, 0]


@pytest.mark.parametrize("name", runs("gateon", "nogate"))
def test_q_zoom_s_second_pass(name: tuple[str, str, str]) -> None:
    run = run_named(name)
    if "crop_grid_thw" not in run.arrays:
        return
    found = _second_pass(run, "q-zoom")
    assert np.array_equal(found.token_ids, run.arrays["pass2_input_ids"])
    assert np.array_equal(found.inserted, run.arrays["inserted_mask"])
    assert np.array_equal(found.positions.rows, run.arrays["pass2_position_ids"])
    assert found.positions.following == run.arrays["decode_position_ids"][0, 0]
    assert found.kept.all()
    if "pass2_visual_mask" in run.arrays:
        assert np.array_equal(found.is_image, run.arrays["pass2_visual_mask"])


@pytest.mark.parametrize("name", runs("gateon_reusepos", "nogate_reusepos"))
def test_a_crop_with_the_coordinates_of_its_source(name: tuple[str, str, str]) -> None:
    run = run_named(name)
    if "crop_grid_thw" not in run.arrays:
        return
    found = _second_pass(run, "q-zoom", source_box_cells=tuple(run.arrays["box_cells"].tolist()))
    assert np.abs(found.positions.rows - run.arrays["pass2_position_ids"]).max() <= FRACTIONAL_POSITION_ABS
    assert found.positions.following == run.arrays["decode_position_ids"][0, 0]


@pytest.mark.parametrize("name", runs("sdrpn"))
def test_sd_rpn_s_second_pass(name: tuple[str, str, str]) -> None:
    run = run_named(name)
    if "pass2_input_ids_full" not in run.arrays:
        return
    cells = run.hw[0] * run.hw[1]
    valid = run.arrays["valid_token_mask_final"]
    before, _ = run.sides
    crop_hw = run.arrays["crop_grid_thw"][0, 1:] // 2
    more = {
        "keep_cells": run.arrays["crop_mask_flat"].reshape(crop_hw),
        "keep_source": valid[len(before) : len(before) + cells],
    }
    found = _second_pass(run, "sd-rpn", **more)
    assert np.array_equal(found.token_ids, run.arrays["pass2_input_ids_full"])
    assert np.array_equal(found.kept, valid)
    assert np.array_equal(found.kept_rows, run.arrays["pass2_position_ids"])
    assert found.positions.following == run.arrays["decode_position_ids"][0, 0]
    assert more["keep_source"].all() == (cells <= 1024)


def test_fractional_positions_are_the_official_ones() -> None:
    cases = [case for case in map_cases("qzoom") if case.positions is not None]
    assert len(cases) >= 20
    for case in cases:
        facts = case.facts
        crop_hw = (facts["sub"][0], facts["sub"][1])
        hw = (facts["h"], facts["w"])
        found = positions_on_source(facts["start"], hw, tuple(facts["box_cells"]), crop_hw, 3)
        first = facts["start"] + hw[0] * hw[1] + 2
        crop = found.rows[:, first : first + crop_hw[0] * crop_hw[1]]
        assert case.positions is not None
        assert np.abs(crop - case.positions).max() <= FRACTIONAL_POSITION_ABS, facts


def test_what_follows_a_crop_counts_on() -> None:
    rows = positions_on_source(5, (4, 6), (1, 2, 3, 4), (2, 8), 3).rows
    assert rows[:, 5 + 24 : 5 + 26].tolist() == [[11, 12]] * 3  # the end of the image and the start of the crop
    crop = rows[:, 31 : 31 + 16].reshape(3, 2, 8)
    assert (crop[0] == 13).all()
    assert crop[1, :, 0].tolist() == [7, 8]
    assert crop[2, 0, [0, -1]].tolist() == [6, 7]
    assert 6 < crop[2, 0, 1] < 7
    assert rows[:, 47:].tolist() == [[21, 22, 23]] * 3


def test_a_box_of_one_cell_has_one_coordinate() -> None:
    rows = positions_on_source(2, (4, 4), (3, 1, 4, 2), (5, 5), 1).rows
    crop = rows[:, 2 + 16 + 2 : -1]
    assert set(crop[1]) == {3.0}
    assert set(crop[2]) == {5.0}


def test_dropped_tokens_leave_gaps() -> None:
    keep = np.array([[True, False], [False, True]])
    source = np.ones(4, np.bool_)
    source[1] = False
    found = second_pass(
        "sd-rpn", [1, START], (2, 2), [END, 9], (2, 2), image_id=IMAGE, keep_cells=keep, keep_source=source
    )
    assert found.token_ids.tolist() == [1, START, *[IMAGE] * 4, START, *[IMAGE] * 4, END, END, 9]
    assert found.token_ids[found.kept].tolist() == [1, START, *[IMAGE] * 3, START, *[IMAGE] * 2, END, END, 9]
    assert found.kept_rows.T.tolist() == [
        [0, 0, 0],
        [1, 1, 1],
        [2, 2, 2],
        [2, 3, 2],
        [2, 3, 3],
        [4, 4, 4],
        [5, 5, 5],
        [5, 6, 6],
        [7, 7, 7],
        [8, 8, 8],
        [9, 9, 9],
    ]
    assert found.positions.following == 10


def test_tokens_of_large_images_that_nothing_looks_at() -> None:
    assert kept_source_cells(np.zeros((2, 1024), np.float32)) is None
    logits = np.full((2, 1025), -9.0, np.float32)
    logits[1, 7] = -4.5  # a score of 0.011
    logits[0, 8] = -4.7  # 0.009
    kept = kept_source_cells(logits)
    assert kept is not None
    assert np.flatnonzero(kept).tolist() == [7]


def test_the_size_from_which_on_tokens_are_left_out_is_the_models_own() -> None:
    logits = np.full((1, 13), -9.0, np.float32)
    logits[0, 3] = 2.0
    kept = kept_source_cells(logits, prune_above=12)
    assert kept is not None
    assert np.flatnonzero(kept).tolist() == [3]
    assert kept_source_cells(logits, prune_above=13) is None
    assert kept_source_cells(logits, prune_above=0) is None
    spec = spec_25(dataclasses.replace(SDRPN, prune_above=12))
    found = family_of(spec).kept_source(spec, logits[0])
    assert found is not None
    assert np.array_equal(found, kept)
    assert family_of(spec).kept_source(spec_25(None), logits[0]) is None


def test_a_prompt_without_the_ids_around_an_image() -> None:
    with pytest.raises(BadInput, match="the prompt has no ids on one side of the image"):
        second_pass("q-zoom", [], (2, 2), [END], (2, 2), image_id=IMAGE)
    with pytest.raises(BadInput, match="positions of the source are Q-Zoom's"):
        second_pass("sd-rpn", [START], (2, 2), [END], (2, 2), image_id=IMAGE, source_box_cells=(0, 0, 1, 1))


def test_several_images_count_one_behind_the_other() -> None:
    found = positions_of_spans([2, (2, 3), 2, (1, 1), 1])
    assert found.rows.T.tolist()[8:] == [[5, 5, 5], [6, 6, 6], [7, 7, 7], [8, 8, 8]]
    assert found.following == 9


def test_axes_of_channels() -> None:
    assert chunked_axes([2, 3, 3]).tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert interleaved_axes([4, 4, 4]).tolist() == [0, 1, 2] * 4
    # Qwen3-VL's own: 24 pairs to time, 20 to rows and to columns; the last four turn by time.
    released = interleaved_axes([24, 20, 20]).tolist()
    assert released[:60] == [0, 1, 2] * 20
    assert released[60:] == [0] * 4
    with pytest.raises(BadInput, match=r"mrope_section is \[1, 2\]; expected three numbers"):
        chunked_axes([1, 2])
