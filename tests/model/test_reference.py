"""The two-pass reference where the official outputs do not reach: other RoI heads, no RPN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import RpnSpec
from sdrpn.model import model_from_checkpoint
from sdrpn.model.reference import ReferenceAnswer, reference_answer
from tests.tiny_models import tiny_spec
from tests.tolerances import SAME_MATH_ABS

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def answer(folder: Path, rpn: RpnSpec | None, roi: RoiPolicy | None) -> ReferenceAnswer:
    write_random_checkpoint(folder, tiny_spec(rpn=rpn, kv_heads=4), roi_gain=2.0)
    with open_checkpoint(folder) as checkpoint:
        model = model_from_checkpoint(checkpoint)
    return reference_answer(model, IMAGE, [1, 40, 41], [42, 43, 44, 45], roi=roi, max_new_tokens=3)


@pytest.fixture
def usual(tmp_path: Path) -> ReferenceAnswer:
    return answer(tmp_path / "usual", RpnSpec(2), RoiPolicy(0.01, max_share=1))


def test_one_dot_product_over_all_heads(tmp_path: Path, usual: ReferenceAnswer) -> None:
    single = answer(tmp_path / "c", RpnSpec(2, multi_head=False), RoiPolicy(0.01, max_share=1))
    assert single.roi_logits is not None
    assert usual.roi_logits is not None
    heads, head_dim = 4, 16  # a sum over heads instead of a mean, and not scaled
    expected = usual.roi_logits * heads * head_dim**0.5
    np.testing.assert_allclose(single.roi_logits, expected, rtol=0, atol=heads * head_dim**0.5 * SAME_MATH_ABS)


def test_a_map_that_is_a_distribution(tmp_path: Path) -> None:
    found = answer(tmp_path / "c", RpnSpec(2, loss="mse"), RoiPolicy(-0.9))
    assert found.roi_logits is not None
    assert found.roi_logits.sum() == pytest.approx(1.0, abs=SAME_MATH_ABS)
    assert found.roi_logits.min() > 0


def test_inserted_tokens_are_counted_and_change_the_answer(usual: ReferenceAnswer, tmp_path: Path) -> None:
    plain = answer(tmp_path / "c", RpnSpec(2), None)
    assert usual.decision is not None
    assert usual.roi_token_count == len(usual.roi_embeds) > 0
    assert (plain.decision, plain.tap) == (None, None)
    np.testing.assert_array_equal(plain.image_embeds, usual.image_embeds)
    assert not np.allclose(plain.step_logits[0], usual.step_logits[0])


def test_without_an_rpn_there_is_nothing_to_zoom_on(tmp_path: Path) -> None:
    found = answer(tmp_path / "c", None, RoiPolicy())
    assert (found.roi_logits, found.decision, found.roi_token_count) == (None, None, 0)
    assert len(found.token_ids) == 3
