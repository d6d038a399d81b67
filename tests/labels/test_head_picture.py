"""The picture of heads: whole text, a cell for every head, chosen ones framed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageDraw

from sdrpn.labels.head_picture import ABOUT, AXIS_PX, CELL_PX, MARGIN_PX, draw_heads
from sdrpn.labels.head_scores import HeadScores
from sdrpn.method.overlay import CROP_COLOUR


def scores(layers: int, heads: int) -> HeadScores:
    frequency = np.random.default_rng(0).random((layers, heads)) ** 6
    frequency[0, 0] = 0
    return HeadScores(np.zeros_like(frequency), np.zeros_like(frequency), np.zeros_like(frequency), frequency)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Everything that is written into pictures, with the box that it fills."""
    written = []
    original = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], words: str, *args: object, **options: object) -> None:
        font = options.get("font", args[1] if len(args) > 1 else None)
        box = self.textbbox(xy, words, font=font, anchor=options.get("anchor"))  # type: ignore[arg-type]
        written.append((words, box))
        original(self, xy, words, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 4), (6, 5), (32, 32), (40, 40), (80, 64)])
def test_all_text_is_inside_and_whole(
    texts: list[tuple[str, tuple[float, float, float, float]]], layers: int, heads: int
) -> None:
    found = scores(layers, heads)
    picture = draw_heads(found, found.best(8))
    for words, (left, top, right, bottom) in texts:
        assert left >= 0 <= top, words
        assert right <= picture.width, words
        assert bottom <= picture.height, words
    written = " ".join(words for words, _ in texts)
    assert ABOUT in written
    assert f"layer {layers - 1}" in written
    for layer, head in found.best(8):
        assert f"layer {layer}, head {head}: in {100 * found.frequency[layer, head]:.0f} % of questions" in written


def test_cells_are_large_enough_to_read() -> None:
    assert CELL_PX[0] >= 28
    assert draw_heads(scores(32, 32), ()).width > 32 * 28


def test_chosen_heads_are_framed() -> None:
    found = scores(6, 5)
    plain, framed = (np.asarray(draw_heads(found, chosen)) for chosen in ((), ((2, 3),)))
    assert not (plain == CROP_COLOUR).all(axis=2).any()
    rows, columns = np.nonzero((framed == CROP_COLOUR).all(axis=2))
    left, size = AXIS_PX + MARGIN_PX + 3 * CELL_PX[1], CELL_PX[1]
    assert (columns.min(), columns.max()) == (left - 1, left + size - 1)
    assert rows.max() - rows.min() == size


def test_no_head_was_chosen(texts: list[tuple[str, tuple[float, float, float, float]]]) -> None:
    draw_heads(scores(2, 2), ())
    assert "No head is chosen." in [words for words, _ in texts]
