"""By which policy a model looks again: its own, a change of it, or another."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sdrpn.errors import BadInput
from sdrpn.host.json_reader import Misfit
from sdrpn.method.policy import OWN, ModelPolicy, Roi, RoiChange, looking_policy, policy_for, policy_from_json
from sdrpn.method.roi import RoiPolicy

MODELS = RoiPolicy(0.3, "bbox", 2.0, min_cells=3, max_share=0.25)


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        (None, None),
        (OWN, MODELS),
        (RoiPolicy(), RoiPolicy()),  # nothing of the model's
        (0.2, RoiPolicy(0.2, "bbox", 2.0, min_cells=3, max_share=0.25)),
        (np.float32(0.5), RoiPolicy(0.5, "bbox", 2.0, min_cells=3, max_share=0.25)),
        (-0.5, RoiPolicy(-0.5, "bbox", 2.0, min_cells=3, max_share=0.25)),
        (RoiChange(gate_threshold=-1), RoiPolicy(0.3, "bbox", 2.0, min_cells=3, max_share=0.25, gate_threshold=-1)),
        (RoiChange(max_share=0.5), RoiPolicy(0.3, "bbox", 2.0, min_cells=3, max_share=0.5)),
        (RoiChange(max_ratio=3), RoiPolicy(0.3, "bbox", 3, min_cells=3, max_share=0.25)),
        # The ratio is for boxes alone.
        (RoiChange(upscale="mask"), RoiPolicy(0.3, "mask", min_cells=3, max_share=0.25)),
    ],
)
def test_what_was_asked_for(roi: Roi, expected: RoiPolicy | None) -> None:
    found = policy_for(roi, MODELS)
    assert found == expected
    assert found is None or type(found.threshold) is float  # as JSON holds it


@pytest.mark.parametrize("roi", [True, np.True_, "auto", [0.3]])
def test_what_is_no_policy(roi: Any) -> None:
    choices = "expected a threshold between 0 and 1, a RoiChange, or a RoiPolicy"
    with pytest.raises(BadInput, match=f"{choices}, or None to look once"):
        policy_for(roi, MODELS)
    with pytest.raises(BadInput, match=f"{choices}: a look finds regions"):
        looking_policy(roi, MODELS)


def test_a_look_is_never_without_a_policy() -> None:
    assert looking_policy(0.2, MODELS) == policy_for(0.2, MODELS)
    with pytest.raises(BadInput, match=r"roi is None; .*: a look finds regions"):
        looking_policy(None, MODELS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0; expected a number between 0 and 1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"upscale": "mask", "max_ratio": 2.0}, 'needs upscale="bbox"'),
        ({"min_cells": 0}, "min_cells is 0"),
        ({"max_share": 2.0}, "max_share is 2.0"),
        ({"gate_threshold": float("nan")}, "gate_threshold is nan; expected a number between 0 and 1, below 0 to look"),
    ],
)
def test_a_change_is_refused_where_it_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        RoiChange(**change)


def test_a_ratio_needs_boxes() -> None:
    with pytest.raises(BadInput, match='needs upscale="bbox"'):
        policy_for(RoiChange(max_ratio=2.0), RoiPolicy())


@pytest.mark.parametrize(
    "policy",
    [
        ModelPolicy(MODELS, "labels"),
        ModelPolicy(RoiPolicy(-0.5), "official"),
        ModelPolicy(RoiPolicy(gate_threshold=0.05), "official"),
    ],
)
def test_as_a_file_has_it(policy: ModelPolicy) -> None:
    assert policy_from_json(json.loads(json.dumps(policy.to_json()))) == policy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": "0.3"}, 'policy.threshold is "0.3"; expected a finite number'),
        ({"threshold": 1}, "policy: threshold is 1.0; expected a number between 0 and 1"),
        ({"origin": "guessed"}, 'policy.origin is "guessed"; expected official or labels or given'),
        ({"max_cells": 3}, "policy.max_cells is unknown"),
    ],
)
def test_a_file_that_says_something_else(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Misfit, match=message):
        policy_from_json({**ModelPolicy(MODELS, "labels").to_json(), **change}, "policy")


def test_a_file_of_before_gates() -> None:
    stored = ModelPolicy(MODELS, "labels").to_json()
    del stored["gate_threshold"]
    assert policy_from_json(stored) == ModelPolicy(MODELS, "labels")


def test_what_people_read() -> None:
    assert ModelPolicy(MODELS, "given").about == "0.3, given to the export"
    assert "its own labels" in ModelPolicy(MODELS, "labels").about.replace("the model's own", "its own")
