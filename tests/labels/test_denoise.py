"""Attention becomes labels: equal to the official code, and sensible at the edges."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_named
from sdrpn.images.square import cells_of_square
from sdrpn.labels.denoise import (
    BACKGROUND,
    FOREGROUND,
    IGNORED,
    RULES,
    LabelRule,
    denoise,
    sinks_by_grid,
    sinks_on,
    usual_sinks,
)

NO_SINKS = np.zeros((4, 4), bool)


def attention_with(**cells: float) -> NDArray[np.float64]:
    """Weak attention on 4 x 4 cells, but for the given ones, such as c5=0.3."""
    attention = np.full(16, 0.001)
    for name, value in cells.items():
        attention[int(name[1:])] = value
    return attention.reshape(4, 4)


def test_sinks_of_several_grids() -> None:
    """Each image by itself; of one that few questions are about, nothing is known."""
    cells = np.ones(16)
    cells[7] = 400.0
    many = [((4, 4), cells)] * 16
    found = sinks_by_grid([*many, ((2, 8), cells)])
    assert list(found) == [(4, 4)]
    assert np.flatnonzero(sinks_on(found, (4, 4))).tolist() == [7]
    assert not sinks_on(found, (2, 8)).any()
    assert np.flatnonzero(sinks_by_grid([((2, 8), cells)])[2, 8]).tolist() == [7]  # the only grid there is


def test_labels_are_those_of_the_official_code(golden: Path) -> None:
    limit = family_named("llava").label_sink_limit
    with np.load(golden / "pseudo_labels.npz") as expected:
        labels = [
            denoise(grounding.reshape(24, 24), sink.reshape(24, 24) >= limit)
            for grounding, sink in zip(expected["grounding"], expected["sink"], strict=True)
        ]
        np.testing.assert_array_equal([label.cells.ravel() for label in labels], expected["labels"])
        everywhere = (0, 0, 24, 24)  # the official box of no foreground
        boxes = [(y1, x1, y2 - 1, x2 - 1) for x1, y1, x2, y2 in (label.box_cells or everywhere for label in labels)]
        np.testing.assert_array_equal(boxes, expected["fg_bbox_r0c0r1c1"])


QWEN = Path(__file__).parents[2].parent / "shared" / "golden" / "qwen" / "q25_K3T3" / "pseudo_labels.npz"
SMALL_SET = Path(__file__).parents[1] / "golden" / "qwen" / "q25_K3T3" / "pseudo_labels.npz"


# The limit of sinks was 1e-2 in both runs.
@pytest.mark.parametrize(
    ("prefix", "rule"),
    [("qzoom", RULES["q-zoom"]), ("default", dataclasses.replace(RULES["sd-rpn-margin"], sink_limit=1e-2))],
)
def test_labels_of_padded_pictures_are_those_of_the_official_code(prefix: str, rule: LabelRule) -> None:
    with np.load(QWEN if QWEN.is_file() else SMALL_SET) as expected:
        for number, image_wh in enumerate(expected["sizes"].tolist()):
            attention, sink = expected[f"attn_{number}"], expected[f"sink_{number}"]
            cells = cells_of_square((image_wh[0], image_wh[1]), (24, 24))
            found = denoise(attention, sink >= (rule.sink_limit or 0), rule, cells)
            np.testing.assert_array_equal(found.cells, expected[f"{prefix}_labels_{number}"])
            if found.box_cells is not None:
                x1, y1, x2, y2 = found.box_cells
                assert (y1, x1, y2 - 1, x2 - 1) == tuple(expected[f"{prefix}_bbox_{number}"])


def test_what_lies_in_the_padding_is_background() -> None:
    attention = attention_with(c1=0.9, c5=0.4, c6=0.05)
    rule = LabelRule(padding_is_background=True)
    found = denoise(attention, NO_SINKS, rule, cells_of_square((40, 20), (4, 4)))
    assert found.cells[0].tolist() == [BACKGROUND] * 4
    assert found.cells[1].tolist() == [BACKGROUND, FOREGROUND, IGNORED, BACKGROUND]
    assert denoise(attention, NO_SINKS, rule).cells[0, 1] == FOREGROUND, "no padding, where the picture is not known"


def test_a_weak_peak_is_no_label() -> None:
    assert not denoise(attention_with(c5=0.004), NO_SINKS, RULES["q-zoom"]).usable
    assert denoise(attention_with(c5=0.006), NO_SINKS, RULES["q-zoom"]).box_cells == (0, 0, 3, 3)


def test_provenance_of_the_first_rule_is_that_of_older_releases() -> None:
    assert set(LabelRule().to_json()) == {"foreground_share", "background_share", "largest_box_share", "raw"}
    assert LabelRule(**RULES["q-zoom"].to_json()) == RULES["q-zoom"]


def test_the_three_kinds_of_cells() -> None:
    labels = denoise(attention_with(c5=0.4, c10=0.1, c3=0.06), NO_SINKS)
    assert labels.box_cells == (1, 1, 3, 3)
    assert labels.cells.tolist() == [
        [BACKGROUND, BACKGROUND, BACKGROUND, IGNORED],  # c3: between a tenth and a fifth of the peak
        [BACKGROUND, FOREGROUND, IGNORED, BACKGROUND],
        [BACKGROUND, IGNORED, FOREGROUND, BACKGROUND],
        [BACKGROUND] * 4,
    ]


def test_a_sink_is_background_outside_the_box() -> None:
    labels = denoise(attention_with(c5=0.4, c15=0.9), np.arange(16).reshape(4, 4) == 15)
    assert labels.cells[3, 3] == BACKGROUND
    assert labels.box_cells == (1, 1, 2, 2)


def test_an_oversize_box_is_ignored_as_a_whole() -> None:
    labels = denoise(attention_with(c0=0.4, c7=0.4), NO_SINKS)  # 4 x 2 of 16 cells: just half
    assert labels.oversize
    assert not labels.usable
    assert not denoise(attention_with(c0=0.4, c6=0.4), NO_SINKS).oversize


@pytest.mark.parametrize("sinks", [NO_SINKS, ~NO_SINKS])
def test_no_attention_is_no_label(sinks: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    labels = denoise(np.zeros((4, 4)) + sinks, sinks)
    assert (labels.usable, labels.box_cells, labels.oversize) == (False, None, False)


class TestUsualSinks:
    def test_what_most_questions_look_at_is_a_sink(self) -> None:
        rng = np.random.default_rng(0)
        attention = rng.random((9, 64))
        attention[:, 7] = 30.0  # always
        attention[:3, 20] = 90.0  # three times
        assert np.flatnonzero(usual_sinks(attention)).tolist() == [7]

    def test_every_question_counts_alike_however_much_it_looks_at_the_image(self) -> None:
        attention = np.ones((3, 64))
        attention[:, 7] = 30.0
        scales = np.array([[1e-6], [1.0], [1e3]])
        np.testing.assert_array_equal(usual_sinks(attention * scales), usual_sinks(attention))

    def test_a_question_that_never_looks_at_the_image_has_no_sink(self) -> None:
        assert not usual_sinks(np.zeros((1, 16))).any()

    def test_no_question_is_refused(self) -> None:
        with pytest.raises(BadInput, match=r"attention has the shape \(0, 16\); expected \(questions, cells\)"):
            usual_sinks(np.zeros((0, 16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"background_share": 0.3}, "expected 0 < background_share <= foreground_share < 1"),
        ({"largest_box_share": 0.0}, "largest_box_share is 0.0; expected a number above 0"),
    ],
)
def test_rules_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LabelRule(**changes)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (np.ones(16), r"expected one \(h, w\)"),
        (np.ones((4, 0)), r"expected one \(h, w\)"),
        (np.full((4, 4), np.nan), "not finite"),
    ],
)
def test_attention_that_cannot_be(attention: NDArray[np.float64], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        denoise(attention, np.zeros(attention.shape, bool))


def test_raw_labels_clean_nothing() -> None:
    sinks = NO_SINKS.copy()
    sinks[0, 0] = True
    attention = attention_with(c0=0.9, c5=0.4, c3=0.06)
    labels = denoise(attention, sinks, LabelRule(raw=True))
    assert set(labels.cells.ravel().tolist()) == {FOREGROUND, BACKGROUND}
    assert np.flatnonzero(labels.cells == FOREGROUND).tolist() == [0, 5]
    assert labels.box_cells == (0, 0, 2, 2)
    assert not denoise(np.zeros((4, 4)), sinks, LabelRule(raw=True)).usable
