"""The page of worst cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadImage
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.worst import worst_cases, write_worst_cases
from tests.evaluation.test_results import record
from tests.evaluation.tiny import tiny_task

METHODS = ("plain", "sdrpn", "oracle-crop")
SCORES = [  # plain, sdrpn, oracle-crop
    (0.0, 1.0, 1.0),
    (0.0, 0.0, 0.0),
    (0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0),
]
RECORDS = [
    record(index, method, score, recall=0.1 * index, crops_xyxy_px=((1, 2, 30, 40),) if method != "plain" else ())
    for index, scores in enumerate(SCORES)
    for method, score in zip(METHODS, scores, strict=True)
]


def test_what_others_got_right_comes_first_and_what_was_right_last() -> None:
    assert [case.record.index for case in worst_cases(METHODS, RECORDS)] == [2, 3, 1, 0]
    assert [case.record.index for case in worst_cases(METHODS, RECORDS, count=1)] == [2]


def test_a_method_that_looks_once_is_not_looked_into() -> None:
    assert worst_cases(("plain",), RECORDS) == []


def page_of(out: Path, records: Sequence[Record] = RECORDS, samples: Sequence[Sample] | None = None) -> str:
    task = tiny_task(4)
    task = task if samples is None else dataclasses.replace(task, samples=samples)
    write_worst_cases(out, task, METHODS, records)
    return (out / "worst" / "index.html").read_text("utf-8")


def changed(**entries: Any) -> list[Record]:
    return [dataclasses.replace(entry, **entries) for entry in RECORDS]


def test_the_page(tmp_path: Path) -> None:
    for _ in range(2):  # the second time in place of the first
        page = page_of(tmp_path)
    folder = tmp_path / "worst"
    pictures = [f"00{number}{panel}.jpg" for number in range(4) for panel in ("-crop-1", "")]
    assert sorted(path.name for path in folder.iterdir()) == [*pictures, "index.html"]
    assert page.index("What is in place 2?") < page.index("What is in place 0?")
    assert page.count("<td>a, b</td>") == 4  # true answers
    for name in pictures:
        assert f'src="{name}"' in page
        with Image.open(folder / name) as picture:
            assert max(picture.size) == 800


def test_answers_stand_in_the_order_of_methods(tmp_path: Path) -> None:
    assert list(worst_cases(METHODS, RECORDS[::-1])[0].answers) == list(METHODS)


def test_the_heat_map_is_there(tmp_path: Path) -> None:
    cells = (0, 0, 0, 0, 0, 90, 0, 0) + (0,) * 8
    page = page_of(tmp_path, changed(map_percent=cells))
    assert "strongest cell 0.9" in page
    assert 'class="scale"></span>0.90' in page
    assert "linear-gradient(90deg, rgb(40, 10, 90)" in page
    with Image.open(tmp_path / "worst" / "000-map.jpg") as picture:
        pixels = np.asarray(picture, np.int64)
    height, width = pixels.shape[:2]  # of 96 x 64; the map covers 96 x 96, the second row of cells from 24 on
    coloured = np.abs(pixels - pixels.mean(axis=2, keepdims=True)).sum(axis=2) > 60
    assert coloured[height // 4 : height // 3, width * 5 // 16 : width * 7 // 16].mean() > 0.9
    assert coloured[height * 3 // 4 :].mean() < 0.01


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"note": "nothing inserted: no cell is above 0.15, the highest is 0.1"}, "No crop: no cell is above 0.15"),
        ({"note": None}, "No crop: the record does not say why"),
        ({"problem": "the picture <x> is gone"}, "Not asked: the picture &lt;x&gt; is gone"),
    ],
)
def test_the_reason_for_no_crop(tmp_path: Path, entries: dict[str, Any], reason: str) -> None:
    assert reason in page_of(tmp_path, changed(crops_xyxy_px=(), **entries))


def test_what_was_left_out_of_a_crop(tmp_path: Path) -> None:
    page = page_of(tmp_path, changed(crops_xyxy_px=((1, 2, 30, 40),), kept_cells=(7,), note="left out: 1 region"))
    assert "Crop: left out: 1 region" in page
    assert "Crop: 29 x 38 pixels at 1, 2; 7 of its tokens are used" in page


def test_no_map_says_so(tmp_path: Path) -> None:
    assert "No heat map" in page_of(tmp_path)
    assert "No heat map" not in page_of(tmp_path / "again", changed(map_percent=(50,)))


def test_crops_outside_of_the_picture_are_cut(tmp_path: Path) -> None:
    page = page_of(tmp_path, changed(crops_xyxy_px=((-9, 2, 30, 4000), (500, 500, 600, 600))))
    assert "Crop: 30 x 62 pixels at 0, 2" in page


def test_long_questions_are_whole(tmp_path: Path) -> None:
    long = "What is written on the small sign? " * 40
    samples = [dataclasses.replace(sample, question=long) for sample in tiny_task(4).samples]
    assert long in page_of(tmp_path, samples=samples)


def test_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    def broken() -> Image.Image:
        raise BadImage("it is gone")

    samples = [dataclasses.replace(sample, open_picture=broken) for sample in tiny_task(4).samples]
    assert "The picture cannot be read: it is gone" in page_of(tmp_path, samples=samples)


def test_answers_are_text_and_not_markup(tmp_path: Path) -> None:
    page = page_of(tmp_path, changed(answer="<script>"))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
