"""Accuracy over the share that is looked at twice, and the threshold that is chosen from it."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.gate.curve import area_under_roc, gate_curve, thinned

SCORES = np.array([0.9, 0.2, 0.7, 0.4])
ONCE, TWICE = np.array([False, True, False, True]), np.array([True, True, True, False])


def test_every_threshold_from_never_to_always() -> None:
    curve = gate_curve(SCORES, ONCE, TWICE)
    assert [(point.share, point.accuracy) for point in curve.points] == [
        (0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.75, 0.75), (1.0, 0.75)
    ]  # fmt: skip
    assert (curve.once, curve.twice) == (0.5, 0.75)
    # Between the scores on both sides of it.
    assert [point.threshold for point in curve.points] == pytest.approx([1.0, 0.8, 0.55, 0.3, 0.1])


def test_what_a_threshold_gives_is_what_it_decides() -> None:
    curve = gate_curve(SCORES, ONCE, TWICE)
    for threshold in (1.0, 0.8, 0.55, 0.3, 0.1, 0.0):
        again = threshold <= SCORES
        assert curve.at(threshold).accuracy == np.where(again, TWICE, ONCE).mean()
        assert curve.at(threshold).share == again.mean()


def test_equal_scores_are_decided_alike() -> None:
    curve = gate_curve(np.array([0.5, 0.5, 0.1]), np.zeros(3, bool), np.ones(3, bool))
    assert [point.share for point in curve.points] == pytest.approx([0, 2 / 3, 1])


def test_the_fewest_second_looks_within_a_loss() -> None:
    curve = gate_curve(SCORES, ONCE, TWICE)
    assert curve.cheapest_within(0.0).share == 0.25
    assert curve.cheapest_within(0.25).share == 0.0
    never = gate_curve(SCORES, TWICE, TWICE)
    assert never.cheapest_within(0.0).share == 0.0
    assert (never.cheapest_within(0.0).threshold > SCORES).all()


def test_a_score_of_one_can_be_left_out() -> None:
    curve = gate_curve(np.array([1.0, 0.5]), np.ones(2, bool), np.ones(2, bool))
    assert curve.points[0].threshold > 1.0


def test_a_useful_gate_gains_over_one_that_draws() -> None:
    rng = np.random.default_rng(0)
    needs = rng.random(400) < 0.3
    good = gate_curve(np.where(needs, 0.8, 0.2) + 0.1 * rng.random(400), ~needs, np.ones(400, bool))
    drawn = gate_curve(rng.random(400), ~needs, np.ones(400, bool))
    assert good.gain_over_random > 0.08
    assert abs(drawn.gain_over_random) < 0.02


def test_the_area_under_the_roc_curve() -> None:
    labels = np.array([True, False, True, False])
    assert area_under_roc(SCORES, labels) == 1.0
    assert area_under_roc(-SCORES, labels) == 0.0
    assert area_under_roc(np.ones(4), labels) == 0.5
    assert area_under_roc(SCORES, np.ones(4, bool)) is None


def test_fewer_points_keep_the_ends() -> None:
    curve = gate_curve(np.arange(50) / 50, np.zeros(50, bool), np.ones(50, bool))
    points = thinned(curve, 7)
    assert len(points) == 7
    assert (points[0], points[-1]) == (curve.points[0], curve.points[-1])


def test_what_is_no_curve() -> None:
    with pytest.raises(BadInput, match="0 scores for 0 and 0 answers"):
        gate_curve(np.zeros(0), np.zeros(0, bool), np.zeros(0, bool))
    with pytest.raises(BadInput, match="score is not finite"):
        gate_curve(np.array([np.nan]), np.zeros(1, bool), np.zeros(1, bool))
