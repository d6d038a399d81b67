"""The layered two passes against the slow reference, which computes everything again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from sdrpn.evaluation.looks import AttentionLook, GivenLook, Look, RpnLook, TeacherLook, VicropLook
from sdrpn.evaluation.torch_answerer import TorchAnswerer
from sdrpn.families.llava.prompt import build_prompt
from sdrpn.labels.head_choice import HeadChoice
from sdrpn.method.roi import Crop, Decide, RoiDecision, RoiPolicy, decide_by_policy
from sdrpn.model import SdRpnModel
from sdrpn.model.reference import reference_answer
from sdrpn.text.prompt import decode_text, load_tokenizer
from tests.evaluation.tiny import PICTURE_WH, picture

QUESTION = "What does it say?"
TOKENS = 6
NO_SINKS = {(4, 4): np.zeros(16, np.bool_)}
HEADS = HeadChoice("chosen", ((1, 0), (2, 3)))
CROPS = (Crop((10, 5, 60, 40)), Crop((0, 0, 96, 64), keep_cells=np.arange(16).reshape(4, 4) % 3 == 0))


@pytest.fixture(scope="module")
def tokenizer(text_checkpoint: object) -> Tokenizer:
    return load_tokenizer(f"{text_checkpoint}/tokenizer.json")


def reference_text(model: SdRpnModel, tokenizer: Tokenizer, decide: Decide | None) -> tuple[str, tuple[Crop, ...]]:
    prompt = build_prompt(tokenizer, model.spec.prompt, QUESTION)
    answer = reference_answer(
        model,
        picture(0),
        prompt.ids_before,
        prompt.ids_after,
        roi=None,
        decide=decide,
        max_new_tokens=TOKENS,
        stop_ids=model.spec.prompt.eos_token_ids,
    )
    crops = answer.decision.crops if answer.decision is not None else ()
    return decode_text(tokenizer, answer.token_ids).strip(), crops


def deciding(crops: tuple[Crop, ...]) -> Decide:
    return lambda logits, image_wh: RoiDecision(np.zeros((0, 4), np.int64), crops, None, logits)


def boxes(crops: tuple[Crop, ...]) -> list[object]:
    return [(crop.box_xyxy_px, None if crop.keep_cells is None else crop.keep_cells.tolist()) for crop in crops]


class TestAgainstTheReference:
    def test_plain(self, answerer: TorchAnswerer, text_model: SdRpnModel, tokenizer: Tokenizer) -> None:
        found = answerer.answer(picture(0), QUESTION, None, TOKENS)
        assert found.text == reference_text(text_model, tokenizer, None)[0] != ""
        assert (found.crops, found.roi_tokens, found.peak_xy_px) == ((), 0, None)

    @pytest.mark.parametrize("crops", [CROPS[:1], CROPS], ids=["one", "two, of one some cells"])
    def test_given_crops(
        self, answerer: TorchAnswerer, text_model: SdRpnModel, tokenizer: Tokenizer, crops: tuple[Crop, ...]
    ) -> None:
        found = answerer.answer(picture(0), QUESTION, GivenLook(crops), TOKENS)
        assert found.text == reference_text(text_model, tokenizer, deciding(crops))[0]
        assert found.roi_tokens == sum(crop.token_count((4, 4)) for crop in crops)

    @pytest.mark.parametrize("threshold", [0.15, 0.5, 0.6, 0.999])
    def test_what_the_rpn_asks_for(
        self, answerer: TorchAnswerer, text_model: SdRpnModel, tokenizer: Tokenizer, threshold: float
    ) -> None:
        policy = RoiPolicy(threshold)
        found = answerer.answer(picture(0), QUESTION, RpnLook(policy), TOKENS)
        text, crops = reference_text(text_model, tokenizer, decide_by_policy(policy, text_model.spec.vision.grid))
        assert (found.text, boxes(found.crops)) == (text, boxes(crops))
        assert found.peak_xy_px is not None

    @pytest.mark.parametrize("cropped", [True, False])
    def test_what_attention_asks_for_costs_no_accuracy(
        self, answerer: TorchAnswerer, text_model: SdRpnModel, tokenizer: Tokenizer, cropped: bool
    ) -> None:
        """The look stops in the middle and goes on from there: the answer is that of everything computed again."""
        policy = RoiPolicy(-0.8, min_cells=1 if cropped else 17, max_share=1)  # 17: more than there are
        look = AttentionLook(policy, HEADS, NO_SINKS)
        found = answerer.answer(picture(0), QUESTION, look, TOKENS)
        assert bool(found.crops) is cropped
        decide = deciding(found.crops) if found.crops else None
        assert found.text == reference_text(text_model, tokenizer, decide)[0]

    def test_the_decision_alone_is_that_of_the_answer(self, answerer: TorchAnswerer) -> None:
        look = RpnLook(RoiPolicy(0.6))
        decision = answerer.decide(picture(0), QUESTION, look)
        assert boxes(decision.crops) == boxes(answerer.answer(picture(0), QUESTION, look, 1).crops)


class TestAttention:
    def test_a_crop_comes_where_the_heads_look(self, answerer: TorchAnswerer) -> None:
        """The strongest cell of their attention lies in what the policy chose."""
        attention = answerer.attention(picture(0), QUESTION, HEADS, "last-prompt", TOKENS)
        assert attention is not None
        look = AttentionLook(RoiPolicy(-0.9, "bbox", min_cells=1), HEADS, NO_SINKS)
        found = answerer.answer(picture(0), QUESTION, look, 1)
        assert found.peak_xy_px is not None
        assert len(found.crops) >= 1

    def test_sinks_do_not_count(self, answerer: TorchAnswerer) -> None:
        attention = answerer.attention(picture(0), QUESTION, HEADS, "last-prompt", TOKENS)
        assert attention is not None
        sinks = np.ones(16, np.bool_)
        sinks[5] = False
        look = AttentionLook(RoiPolicy(-0.2, "bbox", min_cells=1, max_share=1), HEADS, {(4, 4): sinks})
        (crop,) = answerer.answer(picture(0), QUESTION, look, 1).crops
        x1, y1, x2, y2 = crop.box_xyxy_px
        assert (x1 <= 36 < x2, y1 <= 20 < y2) == (True, True)  # the centre of cell (1,1) of 24 px

    def test_the_heads_of_a_model_are_checked(self, answerer: TorchAnswerer) -> None:
        with pytest.raises(ValueError, match="layer 9 head 0 does not exist"):
            answerer.require_heads(HeadChoice("none", ((9, 0),)))

    def test_official_sink_heads_show_the_sinks(self, answerer: TorchAnswerer) -> None:
        shown = answerer.attention(picture(0), QUESTION, HeadChoice("", ((0, 0), (0, 1))), "last-prompt", 1)
        assert shown is not None
        sinks = shown.grounding >= 1e-3
        assert sinks.any()
        policy = RoiPolicy(-0.2, min_cells=1)
        heads = dataclasses.replace(HEADS, sinks=((0, 0), (0, 1)))
        found = answerer.answer(picture(0), QUESTION, AttentionLook(policy, heads, None), 1)
        expected = answerer.answer(picture(0), QUESTION, AttentionLook(policy, HEADS, {(4, 4): sinks}), 1)
        assert (boxes(found.crops), found.peak_xy_px) == (boxes(expected.crops), expected.peak_xy_px)

    def test_the_teacher_looks_where_its_label_lies(self, answerer: TorchAnswerer) -> None:
        """Only the cells (1,1) and (2,1) of 24 px may be foreground; the picture begins 16 px below its square."""
        sinks = np.ones(16, np.bool_)
        sinks[[5, 6]] = False
        found = answerer.answer(
            picture(0), QUESTION, TeacherLook(RoiPolicy(0.15, "bbox", max_share=1), HEADS, {(4, 4): sinks}), TOKENS
        )
        (crop,) = found.crops
        x1, y1, x2, y2 = crop.box_xyxy_px
        assert (x1 < 48 < x2, y1 < 20 < y2) == (True, True)

    def test_a_label_without_foreground_is_no_crop(self, answerer: TorchAnswerer) -> None:
        look = TeacherLook(RoiPolicy(), HEADS, {(4, 4): np.ones(16, np.bool_)})
        assert answerer.answer(picture(0), QUESTION, look, TOKENS).crops == ()


class TestVicrop:
    def test_its_window_lies_in_the_picture(self, answerer: TorchAnswerer) -> None:
        large = picture(1).resize((400, 300))
        found = answerer.answer(large, QUESTION, VicropLook(2, "Describe it."), TOKENS)
        (crop,) = found.crops
        x1, y1, x2, y2 = crop.box_xyxy_px
        assert (0 <= x1 < x2 <= 400, 0 <= y1 < y2 <= 300) == (True, True)
        assert 56 - 2 <= x2 - x1 <= 112  # of 56 px, the model's input
        assert found.roi_tokens == 16

    def test_it_answers_with_that_crop(
        self, answerer: TorchAnswerer, text_model: SdRpnModel, tokenizer: Tokenizer
    ) -> None:
        found = answerer.answer(picture(0), QUESTION, VicropLook(2, "Describe it."), TOKENS)
        assert found.text == reference_text(text_model, tokenizer, deciding(found.crops))[0]


def test_a_prompt_that_does_not_fit(answerer: TorchAnswerer) -> None:
    tall: Look = GivenLook((Crop((0, 0, *PICTURE_WH)),) * 30)
    with pytest.raises(ValueError, match=r"480 RoI tokens .* the model has 512; shorten the question"):
        answerer.answer(Image.new("RGB", PICTURE_WH), QUESTION, tall, TOKENS)
