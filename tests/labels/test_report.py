"""The page of labels: whole questions, tints and outlines that show on any picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.labels.denoise import BACKGROUND, FOREGROUND, IGNORED
from sdrpn.labels.label_picture import TINTS, LabelledPicture, contact_sheet, draw_labels, draw_pair
from sdrpn.labels.labelling import Counts
from sdrpn.labels.report import write_report
from sdrpn.labels.shards import LABEL_COLUMNS, shard_path, write_shard

LONG = "What does the small sign above the second door from the left say? " * 8
CELLS = np.array([FOREGROUND, BACKGROUND, IGNORED, BACKGROUND] * 4, np.int8).reshape(4, 4)
COLOURS = [(0, 200, 0), (90, 230, 110), (255, 214, 10), (20, 45, 150), (0, 0, 0), (255, 255, 255), (128, 128, 128)]


def plain_picture(colour: tuple[int, int, int] = (0, 200, 0)) -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


@pytest.mark.parametrize("colour", COLOURS)
def test_labels_show_on_any_picture(colour: tuple[int, int, int]) -> None:
    shown = np.asarray(draw_labels(plain_picture(colour), CELLS, 400), np.int64)
    foreground, background, ignored = (shown[50, column] for column in (50, 150, 250))
    for a, other in ((foreground, background), (foreground, ignored), (background, ignored)):
        assert np.abs(a - other).sum() > 100, f"{a} and {other} on {colour}"


@pytest.mark.parametrize("colour", COLOURS)
def test_the_foreground_is_outlined_in_both(colour: tuple[int, int, int]) -> None:
    pair = draw_pair(LabelledPicture(plain_picture(colour), CELLS, "?"), side_px=400)
    for left in (0, pair.width - 400):
        across = np.asarray(pair)[50, left + 90 : left + 110]  # over the border of the first cell
        assert (across == TINTS[FOREGROUND]).all(axis=1).any()
        assert across.sum(axis=1).min() < 100, "no dark line beside the light one"


def test_an_ignored_cell_has_no_tint() -> None:
    shown = np.asarray(draw_labels(plain_picture(), CELLS, 400))
    assert len(set(shown[50, 250].tolist())) == 1


def test_captions_make_room_for_themselves() -> None:
    short, long = (contact_sheet([LabelledPicture(plain_picture(), CELLS, text)]) for text in ("Short?", LONG))
    assert long.height > short.height + 80
    lines = np.asarray(long.convert("L"))[-40:]
    assert lines.max() > 150, "the last line is not there"


def write_labels(folder: Path, **changes: str) -> None:
    row = {"id": "1", "image": "a.png", "question": LONG, "ids_before": [1], "ids_after": [2]}
    row |= {"grid_hw": [4, 4], "cells": CELLS.ravel().tolist()}
    (folder / "labels").mkdir()
    write_shard(shard_path(folder / "labels", 0), LABEL_COLUMNS, [row | changes], {})


def test_the_page(tmp_path: Path) -> None:
    plain_picture().save(tmp_path / "a.png")
    write_labels(tmp_path, question=f"<b>{LONG}</b>")
    write_report(tmp_path, tmp_path, Counts(labelled=1234), {"fit": "crop"})
    page = (tmp_path / "report.html").read_text("utf-8")
    assert LONG in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "1,234" in page
    assert "foreground: to be cropped" in page
    assert "cells of foreground: 4" in page
    with Image.open(tmp_path / "samples" / "00.jpg") as picture:
        assert picture.width > 2 * 360
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width > 2 * 2 * 360


@pytest.mark.parametrize(
    ("image", "reason"), [("gone.png", "gone.png does not exist"), ("../a.png", "leads out of the folder of pictures")]
)
def test_a_picture_that_cannot_be_shown(tmp_path: Path, image: str, reason: str) -> None:
    plain_picture().save(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    write_labels(tmp_path, image=image)
    write_report(tmp_path, tmp_path / "images", Counts(labelled=1), {})
    assert reason in (tmp_path / "report.html").read_text("utf-8")
    assert list((tmp_path / "samples").iterdir()) == []


def test_nothing_was_labelled(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    write_report(tmp_path, tmp_path, Counts(), {})
    assert "labelled questions" not in (tmp_path / "report.html").read_text("utf-8")
