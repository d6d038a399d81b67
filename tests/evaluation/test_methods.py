"""What every method plans, with an answerer that only remembers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.evaluation.causal import CONTROLS
from sdrpn.evaluation.crop_pixels import base_view_pixels
from sdrpn.evaluation.looks import Answered, AttentionLook, GivenLook, Look, RpnLook, TeacherLook, VicropLook
from sdrpn.evaluation.methods import METHODS, UNTRAINED, EvaluationQuestion, Setting, methods_for, plan_method
from sdrpn.evaluation.runner import run_methods
from sdrpn.families.llava.vision_spec import clip_of
from sdrpn.images.image import base_pixels
from sdrpn.labels.head_choice import HeadChoice
from sdrpn.method.roi import Crop, RoiDecision, RoiPolicy
from sdrpn.method.spec import ModelSpec
from tests.evaluation.tiny import PICTURE_WH, picture, tiny_task

HEADS = HeadChoice("", ((0, 0),))
SETTING = Setting(
    RoiPolicy(0.3),
    attention=AttentionLook(RoiPolicy(-0.2), HEADS, {(4, 4): np.zeros(16, np.bool_)}),
    teacher=TeacherLook(RoiPolicy(0.3), HEADS, {(4, 4): np.zeros(16, np.bool_)}),
    vicrop=VicropLook(1, "Describe it."),
    seed=3,
)
GIVEN, ASKED = frozenset((GivenLook, RpnLook)), frozenset((AttentionLook, TeacherLook, VicropLook))


@dataclasses.dataclass
class FakeAnswerer:
    """Answers with the question's last word, and looks at the upper left of wherever it is asked to decide."""

    spec: ModelSpec
    rpns: tuple[str, ...] = ("", UNTRAINED, "second")
    looks: frozenset[type[Any]] = GIVEN | ASKED

    def answer(self, picture: Image.Image, question: str, look: Look | None, max_new_tokens: int) -> Answered:
        crops = look.crops if isinstance(look, GivenLook) else ()
        return Answered(question.split()[-1] if max_new_tokens else "", crops, None, 16 * len(crops), 0.01)

    def decide(self, picture: Image.Image, question: str, look: RpnLook) -> RoiDecision:
        crops = (Crop((0, 0, picture.width // 2, picture.height // 2)),)
        return RoiDecision(np.zeros((0, 4), np.int64), crops, None, np.zeros((4, 4), np.float32))


@pytest.fixture
def fake(tiny_spec: ModelSpec) -> FakeAnswerer:
    return FakeAnswerer(tiny_spec)


def question(
    fake: FakeAnswerer, index: int = 0, *, wh: tuple[int, int] = PICTURE_WH, **changes: Any
) -> EvaluationQuestion:
    task = tiny_task(9)
    sample = dataclasses.replace(task.samples[index], **changes)
    before = task.samples[index - 1]
    shown = picture(index).resize(wh)
    return EvaluationQuestion(index, sample, shown, lambda: (before, Image.new("RGB", (48, 200))), fake, SETTING)


def crops_of(look: Look | None) -> list[tuple[int, ...]]:
    assert isinstance(look, GivenLook)
    return [tuple(crop.box_xyxy_px) for crop in look.crops]


class TestPlans:
    def test_methods_that_ask_the_model(self, fake: FakeAnswerer) -> None:
        looks = {name: plan_method(name, question(fake)).look for name in (*METHODS, "sdrpn:second")}
        assert looks["plain"] is looks["blind"] is None
        assert looks["sdrpn"] == RpnLook(SETTING.policy)
        assert looks["sdrpn:second"] == RpnLook(SETTING.policy, "second")
        assert looks["untrained-rpn"] == RpnLook(SETTING.policy, UNTRAINED)
        assert looks["attention-crop"] is SETTING.attention
        assert looks["teacher-crop"] is SETTING.teacher
        assert looks["vicrop"] is SETTING.vicrop

    def test_blind_shows_nothing_of_the_picture(self, fake: FakeAnswerer) -> None:
        shown = plan_method("blind", question(fake)).picture
        assert shown.size == PICTURE_WH
        pixels = base_pixels(shown, clip_of(fake.spec))
        assert float(np.abs(pixels).max()) < 0.02  # the mean colour, rounded to whole values

    def test_the_oracle_takes_whole_cells_around_the_truth(self, fake: FakeAnswerer) -> None:
        """A picture of 96 x 96 px has cells of 24 px."""
        plan = plan_method("oracle-crop", question(fake, wh=(96, 96), boxes_xyxy_px=((30, 12, 60, 30),)))
        assert crops_of(plan.look) == [(24, 0, 72, 48)]

    def test_the_oracle_without_new_pixels(self, fake: FakeAnswerer) -> None:
        """The base image of 56 px has 7 px for each 12 of the picture."""
        plan = plan_method("oracle-lowres", question(fake, wh=(96, 96), boxes_xyxy_px=((24, 0, 72, 24),)))
        assert plan.picture.size == (56, 56)
        assert crops_of(plan.look) == [(14, 0, 42, 14)]
        assert plan.truth == ((14, 0, 42, 14),)

    def test_the_low_resolution_is_what_the_model_sees_first(self, fake: FakeAnswerer) -> None:
        """Also of a picture that is not square: its rows begin 16 px, 9 of the base image, below the square's."""
        asked = question(fake, boxes_xyxy_px=((0, 0, 96, 64),))
        plan, vision = plan_method("oracle-lowres", asked), clip_of(fake.spec)
        assert np.array_equal(base_pixels(plan.picture, vision), base_pixels(asked.picture, vision))
        assert crops_of(plan.look) == [(0, 9, 56, 47)]

    def test_the_shuffled_crop_is_that_of_the_picture_before(self, fake: FakeAnswerer) -> None:
        """Which is 48 x 200: its upper left quarter is moved to that of this one."""
        assert crops_of(plan_method("shuffled-crop", question(fake)).look) == [(0, 0, 48, 32)]

    @pytest.mark.parametrize("name", CONTROLS)
    def test_other_content_keeps_picture_and_crop(self, fake: FakeAnswerer, name: str) -> None:
        """The first look sees the picture, and the crop is the RPN's own; only its pixels are others."""
        asked = question(fake)
        plan = plan_method(name, asked)
        assert plan.picture is asked.picture
        assert isinstance(plan.look, GivenLook)
        assert (crops_of(plan.look), plan.truth) == ([(0, 0, 48, 32)], asked.sample.boxes_xyxy_px)
        assert plan.look.pixels is not None
        assert plan.look.pixels.size == PICTURE_WH
        assert not np.array_equal(np.asarray(plan.look.pixels), np.asarray(asked.picture))

    def test_the_swapped_crop_is_the_one_of_the_picture_before(self, fake: FakeAnswerer) -> None:
        """Which is 48 x 200 and black: its crop is put into this one's box. The answer is scored for its question."""
        asked = question(fake)
        plan = plan_method("crop-swapped", asked)
        assert isinstance(plan.look, GivenLook)
        assert plan.look.pixels is not None
        assert np.asarray(plan.look.pixels)[:32, :48].max() == 0
        assert plan.other is asked.before()[0]

    def test_the_base_view_has_no_more_detail_than_the_first_look(self, fake: FakeAnswerer) -> None:
        """A picture that is already as coarse as 8 x 8 px of the first look's 56 is the same after it."""
        flat = Image.new("RGB", (96, 64), (10, 200, 30))
        asked = dataclasses.replace(question(fake), picture=flat)
        plan = plan_method("crop-lowres", asked)
        assert isinstance(plan.look, GivenLook)
        assert plan.look.pixels is not None
        inner = np.asarray(plan.look.pixels)[8:-8, 8:-8].astype(int)
        assert np.abs(inner - np.array((10, 200, 30))).max() <= 1
        noise = np.asarray(base_view_pixels(picture(0), fake.spec)).astype(float)
        assert noise.std() < 0.9 * np.asarray(picture(0)).astype(float).std()

    def test_the_rpn_is_asked_once_for_all_contents(self, fake: FakeAnswerer) -> None:
        asked = question(fake)
        for name in CONTROLS:
            plan_method(name, asked)
        assert set(asked.proposed) == {False, True}

    def test_tiles_cover_everything_once(self, fake: FakeAnswerer) -> None:
        boxes = crops_of(plan_method("tiles", question(fake)).look)
        assert boxes == [(0, 0, 48, 32), (48, 0, 96, 32), (0, 32, 48, 64), (48, 32, 96, 64)]

    def test_the_centre(self, fake: FakeAnswerer) -> None:
        assert crops_of(plan_method("centre-crop", question(fake)).look) == [(24, 16, 72, 48)]

    def test_random_crops_are_as_large_as_the_truth_and_drawn_anew(self, fake: FakeAnswerer) -> None:
        truth = ((24, 8, 72, 32),)
        found = {
            index: crops_of(plan_method("random-crop", question(fake, index, boxes_xyxy_px=truth)).look)
            for index in range(8)
        }
        assert found == {
            index: crops_of(plan_method("random-crop", question(fake, index, boxes_xyxy_px=truth)).look)
            for index in range(8)
        }
        assert len({str(boxes) for boxes in found.values()}) > 1
        for ((x1, y1, x2, y2),) in found.values():
            assert (0 <= x1 < x2 <= 96, 0 <= y1 < y2 <= 64) == (True, True)
            assert x2 - x1 == 48

    def test_random_crops_without_truth(self, fake: FakeAnswerer) -> None:
        assert len(crops_of(plan_method("random-crop", question(fake, boxes_xyxy_px=())).look)) == 1


class TestChoice:
    def test_the_usual_ones(self, fake: FakeAnswerer) -> None:
        chosen = methods_for(None, tiny_task(), fake, SETTING)
        assert chosen == ("plain", "attention-crop", "sdrpn", "oracle-crop", "sdrpn:second")

    def test_further_rpns_come_along(self, fake: FakeAnswerer) -> None:
        assert methods_for(["sdrpn", "plain"], tiny_task(), fake, SETTING) == ("sdrpn", "sdrpn:second", "plain")
        assert methods_for(["plain", "sdrpn:second"], tiny_task(), fake, SETTING) == ("plain", "sdrpn:second")

    def test_all_that_can_be_done(self, fake: FakeAnswerer) -> None:
        without_gate = tuple(name for name in METHODS if name != "always")
        assert methods_for(["all"], tiny_task(), fake, SETTING) == (*without_gate, "sdrpn:second")
        fake.looks, fake.rpns = GIVEN, ("",)
        chosen = methods_for(["all"], tiny_task(boxes=False), fake, Setting(RoiPolicy()))
        expected = ["plain", "sdrpn", "random-crop", "shuffled-crop", "centre-crop", "tiles", "blind"]
        expected += ["crop-lowres", "crop-swapped", "crop-blank"]
        assert sorted(chosen) == sorted(expected)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("magic", {}, "magic does not exist; expected some of plain, "),
            ("vicrop", {"looks": GIVEN}, "vicrop needs attention maps, which a bundle does not give"),
            ("oracle-crop", {"looks": frozenset()}, "oracle-crop needs a bundle with an RPN"),
            ("sdrpn", {"rpns": ()}, "sdrpn needs an RPN, and the model has none"),
            ("untrained-rpn", {"rpns": ("",)}, "untrained-rpn needs the CHECKPOINT"),
            ("always", {}, "always needs a gate, and the model has none: sdrpn looks twice at every question"),
            ("sdrpn:third", {}, r"names no RPN of this run \(second\); add one as NAME=FILE"),
        ],
    )
    def test_what_cannot_be_done(self, fake: FakeAnswerer, name: str, changes: dict[str, Any], message: str) -> None:
        changed = dataclasses.replace(fake, **changes)
        with pytest.raises(ValueError, match=message):
            methods_for([name], tiny_task(), changed, SETTING)

    def test_what_the_task_or_the_setting_lacks(self, fake: FakeAnswerer) -> None:
        with pytest.raises(ValueError, match="the task tiny does not have; leave it out"):
            methods_for(["oracle-crop"], tiny_task(boxes=False), fake, SETTING)
        with pytest.raises(ValueError, match="leave the method out, or name them"):
            methods_for(["attention-crop"], tiny_task(), fake, Setting(RoiPolicy()))
        with pytest.raises(ValueError, match="no method was named"):
            methods_for([], tiny_task(), fake, SETTING)


class TestRuns:
    def test_methods_take_turns(self, fake: FakeAnswerer) -> None:
        methods = ("plain", "tiles", "blind")
        records = list(run_methods(tiny_task(4), fake, methods, SETTING))
        order = [record.method for record in records]
        assert [order[place] for place in (0, 3, 6, 9)] == ["plain", "tiles", "blind", "plain"]
        assert {(record.index, record.method) for record in records} == {(i, m) for i in range(4) for m in methods}

    def test_what_is_done_is_not_asked_again(self, fake: FakeAnswerer) -> None:
        seen: list[tuple[int, int]] = []
        done = {(0, "plain"), (0, "tiles"), (1, "plain")}
        found = list(
            run_methods(tiny_task(2), fake, ("plain", "tiles"), SETTING, done=done, progress=lambda *a: seen.append(a))
        )
        assert [(record.index, record.method) for record in found] == [(1, "tiles")]
        assert seen == [(4, 4)]

    def test_a_record_says_how_well_it_looked(self, fake: FakeAnswerer) -> None:
        plain, tiles, oracle = run_methods(tiny_task(1), fake, ("plain", "tiles", "oracle-crop"), SETTING)
        assert (plain.iou, plain.contains, plain.zoom, plain.crops_xyxy_px) == (None, None, None, ())
        assert tiles.recall == 1.0
        assert tiles.iou == pytest.approx(30 * 30 / (96 * 64))
        assert oracle.contains is True
        assert (tiles.roi_tokens, tiles.kept_cells) == (64, (None,) * 4)

    def test_only_looking(self, fake: FakeAnswerer) -> None:
        (record,) = run_methods(tiny_task(1), fake, ("oracle-crop",), SETTING, answers=False)
        assert (record.answer, record.score, record.contains) == ("", None, True)

    def test_a_picture_that_cannot_be_read_is_no_end(self, fake: FakeAnswerer) -> None:
        task = tiny_task(3)

        def broken() -> Image.Image:
            from sdrpn.errors import BadImage

            raise BadImage("q1.png is truncated")

        samples = [*task.samples]
        samples[1] = dataclasses.replace(samples[1], open_picture=broken)
        task = dataclasses.replace(task, samples=samples)
        records = list(run_methods(task, fake, ("plain", "shuffled-crop"), SETTING))
        problems = {(record.index, record.method) for record in records if record.problem == "q1.png is truncated"}
        assert problems == {(1, "plain"), (1, "shuffled-crop"), (2, "shuffled-crop")}
        assert all(record.score == 0 and record.seconds is None for record in records if record.problem)
