"""The reference of all families answers these as their own does, which equals the official runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.families.qwen.torch_model import model_from_weights
from sdrpn.families.qwen.torch_reference import Zoom
from sdrpn.families.qwen.torch_reference import reference_answer as own_answer
from sdrpn.families.registry import family_of
from sdrpn.method.spec import ModelSpec
from sdrpn.model import model_from_checkpoint
from sdrpn.model.reference import reference_answer
from tests.families.qwen.models import KINDS, SDRPN, spec_25

BEFORE, AFTER = [300, 12, 302], [303, 40, 41, 42, 7]
MANY = spec_25(dataclasses.replace(SDRPN, prune_above=1024), tokens=(1056, 1100))
SPECS = {**KINDS, "many": MANY}


@pytest.mark.parametrize("gate", [-1.0, 1.01])
@pytest.mark.parametrize("kind", SPECS)
def test_answers_are_equal(kind: str, gate: float, tmp_path: Path) -> None:
    spec: ModelSpec = SPECS[kind]
    if gate > 1 and (spec.rpn is None or not spec.rpn.gate_layers):
        return
    # What is looked at very much is a sink where the model knows them.
    gain, threshold, seed = (2.0, 0.3, 1) if spec.rpn and spec.rpn.sink_query else (60.0, 0.9, 0)
    write_random_checkpoint(tmp_path / "model", spec, roi_gain=gain, seed=seed)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        model, own = model_from_checkpoint(checkpoint), model_from_weights(checkpoint)
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (190, 260, 3), np.uint8))
    policy = dataclasses.replace(family_of(spec).policy(spec), threshold=threshold, gate_threshold=gate)
    found = reference_answer(model, picture, BEFORE, AFTER, roi=policy if spec.rpn else None, max_new_tokens=4)
    expected = own_answer(own, picture, BEFORE, AFTER, zoom=Zoom(threshold, gate), max_new_tokens=4)
    assert found.token_ids == expected.token_ids
    assert np.array_equal(found.step_logits, expected.step_logits)
    assert found.gate_logit == expected.gate_logit
    if expected.roi_logits is None:
        assert found.roi_logits is None
        return
    assert found.roi_logits is not None
    assert found.decision is not None
    assert expected.decision is not None
    assert np.array_equal(found.roi_logits, expected.roi_logits)
    assert [crop.box_xyxy_px for crop in found.decision.crops] == [crop.box_xyxy_px for crop in expected.decision.crops]
    assert found.decision.crops, "a test without a crop says little"
    assert expected.second is not None
    if kind == "many":
        assert found.keep_source is not None
        assert np.array_equal(
            found.keep_source, expected.second.kept[len(BEFORE) : len(BEFORE) + len(found.keep_source)]
        )
