"""Whole answers of random models: what the official code cannot do or does wrong, and what a gate leaves of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.families.qwen.checkpoint import open_qwen
from sdrpn.families.qwen.vision_spec import qwen_vision_of, with_image_tokens
from sdrpn.method.grids import cell_count
from sdrpn.method.roi import RoiPolicy
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.reference import ReferenceAnswer, reference_answer
from tests.families.qwen.checkpoint import CONFIG_3, CONFIG_25, METHOD, QZOOM, config_of, write_qwen

BEFORE, AFTER = (300, 7, 302), (303, 11, 12)
# A random map is about one half everywhere: all of it fires, or nothing.
EVERYWHERE, NOWHERE = RoiPolicy(0.01, gate_threshold=-1), RoiPolicy(0.99, gate_threshold=-1)
SHUT = RoiPolicy(0.01, gate_threshold=1.01)
KINDS: dict[str, dict[str, Any]] = {
    "sd-rpn": config_of(CONFIG_25, **METHOD),
    "q-zoom 2.5": config_of(CONFIG_25, **QZOOM),
    "q-zoom 3": config_of(CONFIG_3, **QZOOM),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SdRpnModel]:
    found = {}
    for kind, config in KINDS.items():
        folder = Path(tmp_path_factory.mktemp("random"))
        with open_qwen(write_qwen(folder, config)) as weights:
            found[kind] = model_from_checkpoint(weights)
    return found


def answered(model: SdRpnModel, size: tuple[int, int], roi: RoiPolicy | None, most: int = 64) -> ReferenceAnswer:
    noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    picture = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)
    vision = with_image_tokens(qwen_vision_of(model.spec), 4, most)
    return reference_answer(model, picture, BEFORE, AFTER, roi=roi, max_new_tokens=3, vision=vision)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_look_inserts_the_crop(models: dict[str, SdRpnModel], kind: str) -> None:
    answer = answered(models[kind], (140, 100), EVERYWHERE)
    assert answer.decision is not None
    x1, y1, x2, y2 = answer.decision.crops[0].box_xyxy_px  # all of it; a fraction of the last pixel may be cut off
    assert (x1, y1) == (0, 0)
    assert x2 in (139, 140)
    assert y2 in (99, 100)
    grid = with_image_tokens(qwen_vision_of(models[kind].spec), 4, 64).grid((140, 100))
    assert len(answer.image_embeds) == cell_count(grid.hw)
    assert len(answer.roi_embeds) == answer.roi_token_count == cell_count(grid.crop_hw((x1, y1, x2, y2)))
    plain = answered(models[kind], (140, 100), None)
    assert not np.allclose(plain.step_logits[0], answer.step_logits[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["q-zoom 2.5", "q-zoom 3"])
def test_a_gate_that_ends_it_leaves_the_plain_answer(models: dict[str, SdRpnModel], kind: str) -> None:
    plain = answered(models[kind], (140, 100), None)
    ended = answered(models[kind], (140, 100), SHUT)
    assert ended.gate_logit is not None
    assert ended.roi_logits is None
    assert np.array_equal(plain.step_logits, ended.step_logits)


@pytest.mark.parametrize("kind", KINDS)
def test_no_region_leaves_the_plain_answer(models: dict[str, SdRpnModel], kind: str) -> None:
    plain = answered(models[kind], (140, 100), None)
    looked = answered(models[kind], (140, 100), NOWHERE)
    assert looked.decision is not None
    assert looked.decision.crops == ()
    assert np.array_equal(plain.step_logits, looked.step_logits)
    assert looked.token_ids == plain.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_of_one_row_is_looked_at(models: dict[str, SdRpnModel], kind: str) -> None:
    answer = answered(models[kind], (900, 32), EVERYWHERE)
    assert answer.roi_logits is not None
    assert answer.roi_logits.shape[0] == 1
    assert answer.roi_token_count


@pytest.mark.parametrize("kind", KINDS)
def test_one_answer_leaves_nothing_to_the_next(models: dict[str, SdRpnModel], kind: str) -> None:
    """SD-RPN's own code keeps the offset of positions, and every later answer without a region decodes elsewhere."""
    before = answered(models[kind], (140, 100), NOWHERE)
    answered(models[kind], (140, 100), EVERYWHERE)
    after = answered(models[kind], (140, 100), NOWHERE)
    assert np.array_equal(before.step_logits, after.step_logits)


def test_a_small_region_in_a_small_picture_is_looked_at(models: dict[str, SdRpnModel]) -> None:
    model = models["sd-rpn"]
    answer = answered(model, (30, 29), EVERYWHERE, most=16)
    assert answer.decision is not None
    x1, y1, x2, y2 = answer.decision.crops[0].box_xyxy_px
    assert min(x2 - x1, y2 - y1) >= 28
