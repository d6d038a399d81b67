"""Scores of heads on hand-made attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sdrpn.errors import BadInput
from sdrpn.labels.head_scores import HeadScorer, js_divergence, spatial_entropy

Floats = NDArray[np.float64]


def spots(*cells: int, of: int = 16) -> Floats:
    """Attention on some cells alone, as much as 0.5 together."""
    attention = np.zeros(of)
    attention[list(cells)] = 0.5 / len(cells)
    return attention


@pytest.mark.parametrize(
    ("attention", "entropy"),
    [
        (spots(5), 0.0),
        (spots(5, 6, 9), 0.0),
        (spots(0, 15), math.log(2)),
        (spots(0, 3, 12, 15), math.log(4)),
        (np.ones(16), 0.0),
    ],
)
def test_spatial_entropy(attention: Floats, entropy: float) -> None:
    assert spatial_entropy(attention.reshape(4, 4)) == pytest.approx(entropy)


def test_js_divergence_lies_between_nothing_and_a_bit() -> None:
    first, second = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])
    np.testing.assert_allclose(js_divergence(first, second), [1.0, 0.0])


def test_the_head_that_follows_the_question_wins() -> None:
    """Head 0 follows, head 1 always looks at one cell (a sink), head 2 is scattered, head 3 looks elsewhere."""
    scorer = HeadScorer()
    scattered = np.linspace(0.01, 0.02, 16)
    scattered[::2] = 0.08
    for question in range(4):
        attention = np.stack([spots(question * 4), spots(7), scattered, spots(question) / 100])
        scorer.add(f"image {question // 2}", attention.reshape(1, 4, 4, 4))
    scores = scorer.scores()
    assert scores.best(1) == ((0, 0),)
    assert scores.dependence[0].round(3).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert scores.image_share[0, :2] == pytest.approx([0.5, 0.5])
    assert scores.frequency[0, 0] == 1.0
    assert math.isnan(scores.entropy[0, 3])  # looks least at the image: never compared


def test_questions_on_different_images_are_not_compared() -> None:
    scorer = HeadScorer()
    scorer.add("a", spots(1).reshape(1, 1, 4, 4))
    scorer.add("b", spots(2).reshape(1, 1, 4, 4))
    with pytest.raises(BadInput, match="no image has two questions"):
        scorer.scores()
