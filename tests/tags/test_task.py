"""The rendered task: seeded, codes held out, answers that are on the picture, and a shifted style that differs."""

from __future__ import annotations

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.tags import SPLITS, render_scene, tag_samples
from sdrpn.tags.glyphs import SEEN_FACES, SHIFTED_FACES, draw_digit
from sdrpn.tags.questions import SEEN_FRAMES, SHIFTED_FRAMES, coarse_question, code_question
from sdrpn.tags.scene import CELL_PX, COLOURS, SEEN, SHIFTED, SceneStyle
from sdrpn.tags.task import ALL_CODES, TRAINED_CODES


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


class TestSamples:
    def test_a_sample_depends_on_split_seed_and_index_alone(self) -> None:
        few, many = (list(tag_samples("heldout", samples, seed=7)) for samples in (2, 4))
        for scene, other in zip(few, many, strict=False):
            assert (scene.index, scene.question, scene.answer, scene.box_xyxy_px) == (
                other.index,
                other.question,
                other.answer,
                other.box_xyxy_px,
            )
            assert scene.image.tobytes() == other.image.tobytes()
        assert [sample.index for sample in many] == [0, 1, 2, 3]
        others = [next(tag_samples("heldout", 1, seed=8)), next(tag_samples("train", 1, seed=7)), many[1]]
        assert all(other.image.tobytes() != many[0].image.tobytes() for other in others)

    @pytest.mark.parametrize("split", SPLITS)
    def test_a_sample_is_a_picture_a_question_and_its_answer(self, split: str) -> None:
        for sample in tag_samples(split, 3, seed=0):
            assert (sample.image.size, sample.image.mode, sample.kind) == ((840, 840), "RGB", "code")
            assert len(sample.answer) == 3
            assert sample.answer.isdigit()
            assert sum(colour in sample.question.split() for colour in COLOURS) == 1
            x1, y1, x2, y2 = sample.box_xyxy_px
            assert 0 <= x1 < x2 <= 840
            assert 0 <= y1 < y2 <= 840

    def test_a_split_that_does_not_exist(self) -> None:
        with pytest.raises(
            BadInput, match="the task tags has no split 'test'; expected one of train, heldout, shifted"
        ):
            next(tag_samples("test", 1, seed=0))


class TestCodes:
    def test_a_tenth_is_held_out(self) -> None:
        assert (len(ALL_CODES), len(set(TRAINED_CODES)), len(TRAINED_CODES)) == (1000, 900, 900)
        assert set(TRAINED_CODES) < set(ALL_CODES)

    def test_no_held_out_code_is_ever_on_a_picture_to_train_on(self) -> None:
        for seed in range(20):
            scene = render_scene(rng_of(seed), SEEN, TRAINED_CODES)
            assert {tag.code for tag in scene.tags} <= set(TRAINED_CODES)
        asked = {sample.answer for sample in tag_samples("train", 20, seed=0)}
        assert asked <= set(TRAINED_CODES)


@pytest.mark.parametrize("style", [SEEN, SHIFTED])
class TestScenes:
    def test_boxes_contain_all_digits(self, style: SceneStyle) -> None:
        for seed in range(15):
            for tag in render_scene(rng_of(seed), style, ALL_CODES).tags:
                x1, y1, x2, y2 = tag.box_xyxy_px
                for digit in tag.digits:
                    x, y = digit.centre_xy
                    # A digit is at most so high, and narrower than that.
                    assert x1 <= x - style.cap_px[0] / 4
                    assert x + style.cap_px[0] / 4 <= x2
                    assert y1 <= y - style.cap_px[0] / 2
                    assert y + style.cap_px[0] / 2 <= y2
                assert (x2 - x1) / CELL_PX >= style.plate_w_cells[0] - 0.01

    def test_tags_lie_apart_and_no_colour_comes_twice(self, style: SceneStyle) -> None:
        for seed in range(15):
            tags = render_scene(rng_of(seed), style, ALL_CODES).tags
            assert 1 <= len(tags) <= style.tags[1]
            assert len({tag.colour for tag in tags}) == len(tags)
            covered = np.zeros((840, 840), int)
            for tag in tags:
                x1, y1, x2, y2 = tag.box_xyxy_px
                covered[y1:y2, x1:x2] += 1
            assert covered.max() == 1

    def test_the_plate_is_where_the_box_says(self, style: SceneStyle) -> None:
        scene = render_scene(rng_of(3), style, ALL_CODES)
        pixels = np.asarray(scene.image, int)
        for tag in scene.tags:
            x1, y1, x2, y2 = tag.box_xyxy_px
            inside = pixels[y1:y2, x1:x2].reshape(-1, 3)
            near = np.abs(inside - COLOURS[tag.colour]).max(axis=1) <= 15
            assert near.mean() > 0.25, tag


def test_the_shifted_style_has_nothing_in_common_with_the_seen_one() -> None:
    assert not set(SEEN.faces) & set(SHIFTED.faces)
    assert not set(SEEN.shapes) & set(SHIFTED.shapes)
    assert not set(SEEN.backgrounds) & set(SHIFTED.backgrounds)
    assert not set(SEEN_FRAMES["code"]) & set(SHIFTED_FRAMES["code"])
    words = {word for frames in SEEN_FRAMES.values() for frame in frames for word in frame.split()}
    words.add(":")  # of the prompt
    assert {word for frame in SHIFTED_FRAMES["code"] for word in frame.split()} <= words


class TestQuestions:
    def test_the_answer_is_that_of_the_tag_asked_for(self) -> None:
        scene = render_scene(rng_of(1), SEEN, ALL_CODES)
        for tag in scene.tags:
            asked = code_question(rng_of(0), tag)
            assert (asked.answer, asked.kind, asked.tag) == (tag.code, "code", tag)
            assert tag.colour in asked.text

    def test_coarse_questions(self) -> None:
        scene = render_scene(rng_of(1), SEEN, ALL_CODES)
        found = [coarse_question(rng_of(seed), scene) for seed in range(60)]
        assert {asked.kind for asked in found} == {"shape", "border", "list"}
        for asked in found:
            if asked.tag is None:
                places = [
                    tag.box_xyxy_px[0] for name in asked.answer.split() for tag in scene.tags if tag.colour == name
                ]
                assert places == sorted(tag.box_xyxy_px[0] for tag in scene.tags)
            else:
                assert asked.answer == (asked.tag.shape if asked.kind == "shape" else asked.tag.border)


@pytest.mark.parametrize("face", [*SEEN_FACES, *SHIFTED_FACES])
def test_every_digit_is_drawn_around_its_centre_and_like_no_other(face: str) -> None:
    from PIL import Image, ImageDraw

    drawn = set()
    for digit in "0123456789":
        image = Image.new("L", (80, 80))
        draw_digit(ImageDraw.Draw(image), digit, face, (40.0, 40.0), 40.0, 255)  # type: ignore[arg-type]
        rows, columns = np.nonzero(np.asarray(image) > 100)
        assert 30 <= np.ptp(rows) + 1 <= 48
        assert abs((rows.min() + rows.max()) / 2 - 40) <= 5
        assert abs((columns.min() + columns.max()) / 2 - 40) <= 12  # a 1 of seven segments is on the right
        drawn.add(image.tobytes())
    assert len(drawn) == 10
