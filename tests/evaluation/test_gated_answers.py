"""A gate of either kind in PyTorch, against its bundle: the same scores, looks and answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sdrpn.checkpoint import open_checkpoint, tensor_shapes, write_random_checkpoint, write_rpn
from sdrpn.checkpoint.random import random_tensor
from sdrpn.checkpoint.tokenizer import tokenizer_of
from sdrpn.evaluation.looks import Answerer
from sdrpn.evaluation.methods import Setting
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.runner import run_methods
from sdrpn.evaluation.torch_answerer import TorchAnswerer
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.roi import RoiPolicy
from sdrpn.method.spec import RpnSpec
from sdrpn.model import model_from_checkpoint
from sdrpn.runtime import Session
from sdrpn.workflows.bundle_answerer import BundleAnswerer
from tests.evaluation.tiny import tiny_task
from tests.tiny_models import tiny_spec
from tests.tolerances import PARITY_ABS

KINDS = {"layers": RpnSpec(2, gate_layers=2), "probe": RpnSpec(2, gate_probe=True)}
SEED = 3


def asked(answerer: Answerer, threshold: float) -> list[Record]:
    setting = Setting(RoiPolicy(0.05, upscale="bbox", max_share=1.0, gate_threshold=threshold))
    return list(run_methods(tiny_task(3), answerer, ("plain", "sdrpn", "always"), setting))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_asks_its_gate_as_the_bundle_does(kind: str, tmp_path: Path) -> None:
    base = tiny_spec(rpn=None, vocabulary=288, max_context=512)
    spec = dataclasses.replace(base, rpn=KINDS[kind])
    write_random_checkpoint(tmp_path / "base", base, layout="llava", seed=SEED, with_tokenizer=True)
    shapes = tensor_shapes(spec)
    write_rpn(tmp_path / "rpn", spec, lambda name: random_tensor(name, shapes[name], SEED))
    export_bundle(tmp_path / "base", tmp_path / "bundle", ExportOptions("fp32"), rpn=tmp_path / "rpn")
    with (
        open_checkpoint(tmp_path / "base", rpn=tmp_path / "rpn") as checkpoint,
        Session.open(tmp_path / "bundle", threads=1) as session,
    ):
        in_torch = TorchAnswerer(model_from_checkpoint(checkpoint), tokenizer_of(checkpoint))
        scores = [record.gate_score for record in asked(in_torch, -1.0) if record.method == "always"]
        lowest, next_lowest, _ = sorted(score for score in scores if score is not None)
        between = (lowest + next_lowest) / 2
        found, expected = (asked(answerer, between) for answerer in (in_torch, BundleAnswerer(session)))
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("method", "answer", "crops_xyxy_px", "roi_tokens"):
            assert getattr(mine, name) == getattr(theirs, name), (mine.index, mine.method)
        assert mine.gate_score == pytest.approx(theirs.gate_score, abs=PARITY_ABS)
        assert (mine.gate_score is None) is (mine.method == "plain")
    looked = {(record.method, bool(record.roi_tokens)) for record in found if record.method != "plain"}
    assert looked == {("sdrpn", True), ("sdrpn", False), ("always", True)}
    refused = [record.note for record in found if record.method == "sdrpn" and not record.roi_tokens]
    assert all(note is not None and "the gate's score is" in note for note in refused)
