"""Every kind of image and question through `Session`, as a program that embeds it would ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.images.image import open_image
from sdrpn.runtime import Answer, RoiPolicy, Session
from tests.pictures import BROKEN, PICTURES, SIZE_WH, exif_rotated, photo

QUESTION = "What does the sign say?"
SOME_CELLS = RoiPolicy(threshold=0.3)  # finds a region that is not the whole photo


@pytest.fixture(scope="module")
def session(text_bundle: Path) -> Iterator[Session]:
    with Session.open(text_bundle, threads=1) as opened:
        yield opened


def result(answer: Answer) -> tuple[object, ...]:
    return answer.token_ids, answer.boxes_xyxy_px, answer.roi_token_count


@pytest.mark.parametrize("kind", list(PICTURES))
def test_every_kind_of_picture(session: Session, tmp_path: Path, kind: str) -> None:
    write, (width, height) = PICTURES[kind]
    answer = session.answer(write(tmp_path), QUESTION, roi=RoiPolicy(max_share=1), max_new_tokens=2)
    assert len(answer.token_ids) == 2
    assert answer.boxes_xyxy_px
    for x1, y1, x2, y2 in answer.boxes_xyxy_px:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height


@pytest.mark.parametrize("kind", list(BROKEN))
def test_what_is_no_picture_is_refused_and_forgotten(session: Session, tmp_path: Path, kind: str) -> None:
    before = session.answer(photo(), QUESTION, max_new_tokens=4)
    write, message = BROKEN[kind]
    with pytest.raises(BadImage, match=message) as caught:
        session.answer(write(tmp_path), QUESTION)
    assert "\n" not in str(caught.value)
    assert result(session.answer(photo(), QUESTION, max_new_tokens=4)) == result(before)


def test_paths_bytes_images_and_arrays_are_the_same_picture(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(photo()).save(path)
    session.forget_image()  # it has seen others in the tests before
    sources = (path, str(path), path.read_bytes(), Image.open(path), photo(), open_image(path))
    answers = [session.answer(source, QUESTION, roi=SOME_CELLS, max_new_tokens=4) for source in sources]
    assert len({result(answer) for answer in answers}) == 1
    # It was recognised by its pixels: only the crop had to be encoded again.
    assert [answer.tokens.images_encoded for answer in answers] == [2, *([1] * (len(sources) - 1))]


def test_a_picture_that_was_stored_on_its_side(session: Session, tmp_path: Path) -> None:
    path = exif_rotated(tmp_path)
    with Image.open(path) as stored:
        assert stored.size == SIZE_WH[::-1]
    upright = session.answer(photo(), QUESTION, roi=SOME_CELLS, max_new_tokens=4)
    for source in (path, Image.open(path), open_image(path)):
        assert result(session.answer(source, QUESTION, roi=SOME_CELLS, max_new_tokens=4)) == result(upright)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\); expected \(H, W, 3\), uint8 or floats in 0\.\.1: repeat grey"),
        (np.zeros((4, 4, 3), np.int32), r"dtype int32; expected \(H, W, 3\), uint8 or floats in 0\.\.1: convert it"),
        (np.full((4, 4, 3), 255.0), r"a frame of floats has values from 255 to 255; expected 0\.\.1: scale it"),
        (np.zeros((0, 4, 3), np.uint8), r"is 4x0 px; expected at least 1x1"),
        (3, r"an image is a path, bytes, a PIL image or an \(H, W, 3\) array; got int"),
        (b"", r"the image is empty \(0 bytes\)"),
    ],
    ids=["two axes", "integers", "floats", "no rows", "a number", "no bytes"],
)
def test_what_is_no_image_at_all(session: Session, image: object, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        session.answer(image, QUESTION)  # type: ignore[arg-type]


@pytest.mark.parametrize("question", ["Что написано?", "看板には何と", "ما المكتوب؟", "🙂", "a\0b\n", "<image>What?"])
def test_any_script(session: Session, question: str) -> None:
    assert len(session.answer(photo(), question, max_new_tokens=3).token_ids) == 3


@pytest.mark.parametrize(
    ("question", "kind", "message"),
    [
        ("", BadInput, "the question is empty"),
        (" <image> ", BadInput, "the question is empty"),
        (b"What?", BadInput, "the question is bytes; expected text"),
        ("\ud800", BadInput, "the question is not valid Unicode text"),
        (
            "x" * 10_000,
            ContextTooLong,
            r"\d{5} prompt tokens \+ 64 new tokens need \d{5} positions, the bundle has 512",
        ),
    ],
    ids=["empty", "image only", "bytes", "half a character", "10 kB"],
)
def test_questions_that_cannot_be_asked(session: Session, question: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        session.answer(photo(), question)
    assert re.search(r"\n", str(caught.value)) is None


def test_streamed_pieces_make_the_text(session: Session) -> None:
    stream = session.stream(photo(), QUESTION, max_new_tokens=60)
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == session.answer(photo(), QUESTION, max_new_tokens=60).text
    assert all(pieces)


def test_names_and_lists_of_another_kind(session: Session) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(BadInput, match="questions is 3; expected a list of questions"):
        session.look_many(image, 3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="the picture to write is 3; expected a path"):
        session.look(image, "What?").save_overlay(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bundle_dir": 3}, "a bundle is 3; expected the path of its folder, or 'demo'"),
        ({"threads": "a"}, "threads is 'a'; expected an integer or None"),
        ({"threads": 1.5}, "threads is 1.5; expected an integer or None"),
        ({"backend": 3}, "backend is 3; expected a text"),
        ({"engine_options": 3}, "engine_options is 3; expected EngineOptions"),
        ({"prefix_bytes": "a"}, "prefix_bytes is 'a'; expected a number of bytes"),
        ({"max_batch": "a"}, "max_batch is 'a'; expected a number of questions"),
    ],
)
def test_options_of_another_kind(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Session.open(**{"bundle_dir": "demo", **options})  # type: ignore[arg-type]
