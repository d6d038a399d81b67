"""Answers and looks as values: shown in a line, as JSON, compared, and drawn."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.errors import BadInput
from sdrpn.method.roi import RoiPolicy
from sdrpn.runtime import Answer, Look
from tests.runtime.test_look import fired, glance
from tests.runtime.test_session import ANYWHERE, IMAGE, Fake, open_fake, script_of

__all__ = ["open_fake"]  # a fixture


@pytest.fixture
def fake(open_fake: Callable[..., Fake]) -> Fake:
    return open_fake(fired(script_of(5, 6)))


@pytest.fixture
def answer(fake: Fake) -> Answer:
    return fake.ids(roi=ANYWHERE, max_new_tokens=3)


@pytest.fixture
def look(fake: Fake) -> Look:
    return glance(fake)


def is_png(data: bytes | None) -> bool:
    return data is not None and Image.open(io.BytesIO(data)).format == "PNG"


class TestAnswer:
    def test_it_shows_itself_in_a_line(self, answer: Answer) -> None:
        assert repr(answer).startswith(f"Answer('w5 w6 w5', cut off, box {answer.boxes_xyxy_px[0]}")
        assert len(repr(answer)) < 160

    def test_it_is_json(self, answer: Answer) -> None:
        value = json.loads(json.dumps(answer.to_dict()))
        assert (value["text"], value["token_ids"], value["finish_reason"]) == ("w5 w6 w5", [5, 6, 5], "length")
        assert np.array(value["roi_map"]).shape == (2, 2)
        assert value["tokens"]["images_encoded"] == 2
        assert "roi_map" not in answer.to_dict(with_map=False)

    def test_without_a_map_it_is_json_too(self, fake: Fake) -> None:
        assert json.loads(json.dumps(fake.ids().to_dict()))["roi_map"] is None

    def test_answers_are_compared_by_what_they_say_and_saw(self, fake: Fake, answer: Answer) -> None:
        again = fake.ids(roi=ANYWHERE, max_new_tokens=3)
        assert again == answer
        assert hash(again) == hash(answer)
        assert again.tokens != answer.tokens  # the picture was known
        plain = fake.ids(max_new_tokens=3)
        assert plain == fake.ids(max_new_tokens=3)
        assert plain != answer
        other = dataclasses.replace(answer, roi_map=np.zeros((2, 2), np.float32))
        assert other != answer
        assert answer != "w5 w6 w5"

    def test_it_is_drawn_in_notebooks(self, answer: Answer) -> None:
        assert is_png(answer._repr_png_())

    def test_a_picture_that_is_gone(self, fake: Fake) -> None:
        answer = fake.session.answer(IMAGE.copy(), "w8", roi=ANYWHERE)
        assert answer._repr_png_() is None
        with pytest.raises(BadInput, match=r"not in memory any more; pass it again: overlay\(image\)"):
            answer.overlay()
        assert answer.overlay(IMAGE).width > IMAGE.shape[1]
        with pytest.raises(BadInput, match="the picture has 8x8 px, the one that was asked about 8x6; pass that one"):
            answer.overlay(np.zeros((8, 8, 3), np.uint8))

    def test_a_file_is_read_again(self, fake: Fake, tmp_path: Path) -> None:
        path = tmp_path / "street.png"
        Image.fromarray(IMAGE).save(path)
        for source in (path, str(path), path.read_bytes()):
            assert is_png(fake.session.answer(source, "w8", roi=ANYWHERE)._repr_png_())

    def test_bgr_is_drawn_in_its_colours(self, fake: Fake) -> None:
        red = np.zeros((60, 80, 3), np.uint8)
        red[..., 2] = 255
        answer = fake.session.answer(red, "w8", roi=None, channels="bgr")
        assert np.asarray(answer.overlay())[100, 100].tolist() == [255, 0, 0]


class TestOverlayFiles:
    @pytest.mark.parametrize(
        ("name", "form"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
    )
    def test_the_ending_decides(self, answer: Answer, look: Look, tmp_path: Path, name: str, form: str) -> None:
        for result in (answer, look):
            result.save_overlay(tmp_path / name)
            with Image.open(tmp_path / name) as image:
                assert image.format == form
                assert image.size == result.overlay().size
            (tmp_path / name).unlink()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("a.bmp", r"a\.bmp ends in \.bmp; expected a name that ends in \.png, \.jpg, \.jpeg or \.webp"),
            ("a", "a has no ending; expected a name"),
            ("tpyo/a.png", "is in a folder that does not exist; make it first: mkdir -p .*tpyo"),
        ],
    )
    def test_other_names_are_refused(self, answer: Answer, look: Look, tmp_path: Path, name: str, message: str) -> None:
        for result in (answer, look):
            with pytest.raises(BadInput, match=message):
                result.save_overlay(tmp_path / name)
        assert not (tmp_path / name).exists()
        assert not (tmp_path / "tpyo").exists()

    def test_what_was_dropped_is_drawn_with_its_reason(self, open_fake: Callable[..., Fake]) -> None:
        script = script_of(5)
        script.scores[:] = 9.0
        found = open_fake(script).session.look_ids(IMAGE, (1,), (3, 4), roi=RoiPolicy(max_share=0.5))
        assert [region.reason for region in found.dropped] == ["more than 2 cells"]
        bare = dataclasses.replace(found, dropped=())
        assert np.any(np.asarray(found.overlay()) != np.asarray(bare.overlay()))


def test_a_look_is_drawn_in_notebooks(look: Look) -> None:
    assert is_png(look._repr_png_())
