"""From heads to labels, an RPN and an evaluation, each as one call."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import sdrpn
from sdrpn.errors import BadInput
from sdrpn.labels import LabelRule
from sdrpn.model import base
from tests.labels.data import write_questions
from tests.train.data import write_labels
from tests.workflows.recorded_progress import RecordedProgress


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """What kind of model is read from a checkpoint, each time that one is."""
    kinds: list[type] = []
    load = base._load_frozen

    def counted(model: Any, *arguments: Any) -> None:
        kinds.append(type(model))
        load(model, *arguments)

    monkeypatch.setattr(base, "_load_frozen", counted)
    return kinds


def test_a_proposal_reads_the_model_once(
    plain_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[type]
) -> None:
    # Random weights look everywhere: only the strongest cells count, and no box is too large.
    monkeypatch.setattr(import_module("sdrpn.labels.denoise"), "rule_named", lambda name: LabelRule(0.7, 0.35, 1.0))
    data, out, progress = write_questions(tmp_path, images=6), tmp_path / "h", RecordedProgress()
    asked = sdrpn.TeacherRequest(sdrpn.CheckpointParts(plain_checkpoint), data, tmp_path, max_new_tokens=2)
    proposal = sdrpn.ProposalRequest("tiny", tap_layers=(1, 3), rpn_layers=(1,), steps=2)
    found = sdrpn.find_heads(sdrpn.HeadsRequest(asked, out=out, proposal=proposal), progress)
    assert reads == [base.SdRpnModel]
    assert found.proposal is not None
    assert [(trial.tap_layer, trial.rpn_layers) for trial in found.proposal.trials] == [(1, 1), (3, 1)]
    assert json.loads((out / "heads.json").read_text())["proposal"]["tap_layer"] == found.proposal.tap_layer
    assert sorted(path.name for path in out.iterdir()) == ["heads.json", "heads.png", "labels", "taps.png"]
    assert set(progress.ends) == {
        "heads", "label", "taps of layer 1", "taps of layer 3", "K=1 T=1", "K=3 T=1",
    }  # fmt: skip


def test_a_proposal_that_fits_no_model_is_refused_before_one_is_read(
    plain_checkpoint: Path, tmp_path: Path, reads: list[type]
) -> None:
    data = write_questions(tmp_path)
    asked = sdrpn.TeacherRequest(sdrpn.CheckpointParts(plain_checkpoint), data, tmp_path)
    proposal = sdrpn.ProposalRequest(tap_layers=(4,), rpn_layers=(1,))
    with pytest.raises(BadInput, match="fits an LLM of 4 layers"):
        sdrpn.find_heads(sdrpn.HeadsRequest(asked, out=tmp_path / "h", proposal=proposal))
    with pytest.raises(BadInput, match="name a folder") as caught:
        sdrpn.find_heads(sdrpn.HeadsRequest(asked, proposal=proposal))
    assert caught.value.options == ("out",)
    assert reads == []


def test_labels_and_their_second_rule(text_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, heads = write_questions(tmp_path), tmp_path / "heads.json"
    heads.write_text(json.dumps({"format_version": 1, "grounding": [[1, 0], [2, 1]]}))
    labelled = sdrpn.label_questions(
        text_checkpoint, data, tmp_path, tmp_path / "labels", heads=str(heads), limit=2, max_new_tokens=2
    )
    assert labelled.provenance["questions"] == 2
    assert labelled.page.is_file()
    again = sdrpn.relabel_questions(sdrpn.RelabelRequest(labelled.out, tmp_path / "raw", raw=True))
    assert (again.rule.raw, again.images) == (True, labelled.images)
    assert capfd.readouterr() == ("", "")


def test_an_rpn_and_how_it_does(plain_checkpoint: Path, text_checkpoint: Path, tmp_path: Path) -> None:
    options = sdrpn.TrainOptions(tap_layer=2, rpn_layers=1, batch=8, steps=2, precision="fp32", taps="none")
    warnings: list[str] = []
    trained = sdrpn.train_rpn(
        plain_checkpoint, write_labels(tmp_path), tmp_path / "rpn", options, device="cpu", warn=warnings.append
    )
    assert (trained.is_main, trained.report.steps, warnings) == (True, 2, [])
    assert (trained.out / "rpn.safetensors").is_file()
    progress = RecordedProgress()
    results = sdrpn.evaluate_model(
        text_checkpoint, "tags", samples=1, methods=["plain", "sdrpn"], threads=1, progress=progress
    )
    assert (results.samples, list(results.methods)) == (1, ["plain", "sdrpn"])
    assert progress.ends["eval"] == (2, 2)


@pytest.mark.parametrize("name", ["rpns", "base", "projector", "fit"])
def test_what_only_a_checkpoint_takes(text_bundle: Path, name: str) -> None:
    given: dict[str, Any] = {name: ("x",) if name == "rpns" else "pad"}
    with pytest.raises(BadInput, match="is for a checkpoint, and ") as caught:
        sdrpn.evaluate_model(text_bundle, "tags", **given)
    assert caught.value.options == (name.removesuffix("s"),)
