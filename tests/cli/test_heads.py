"""`sdrpn heads` on a tiny checkpoint."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from sdrpn.labels import LabelRule
from sdrpn.labels.head_choice import by_layer, read_heads
from tests.cli.command import Command, refusal
from tests.labels.data import write_questions


@pytest.mark.parametrize("layout", ["text", "plain"])
def test_heads_are_found(sdrpn: Command, layout: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    checkpoint = request.getfixturevalue(f"{layout}_checkpoint")
    data = write_questions(tmp_path)
    command = (
        "heads",
        checkpoint,
        "--data",
        data,
        "--images",
        tmp_path,
        "--max-new-tokens",
        3,
        "--out",
        tmp_path / "h",
    )
    found = sdrpn(*command, "--json").json()
    assert found == json.loads((tmp_path / "h" / "heads.json").read_text())
    assert (len(found["grounding"]), found["questions"], len(found["scores"])) == (3, 6, 16)
    assert [list(head) for head in read_heads(str(tmp_path / "h")).grounding] == found["grounding"]
    with Image.open(tmp_path / "h" / "heads.png") as picture:
        assert picture.width > 300
    table = sdrpn(*command)
    assert table.code == 0
    assert sum(line.endswith("yes") for line in table.out.splitlines()) == 3


def test_tap_and_size_are_proposed(
    sdrpn: Command, plain_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random weights look everywhere: only the strongest cells count, and no box is too large.
    monkeypatch.setattr(import_module("sdrpn.labels.denoise"), "rule_named", lambda name: LabelRule(0.7, 0.35, 1.0))
    data, out = write_questions(tmp_path, images=6), tmp_path / "h"
    files = ("--data", data, "--images", tmp_path, "--out", out, "--max-new-tokens", 3)
    tried = ("--propose", "tiny", "--tap-layers", 1, 2, "--rpn-layers", 1, 2, "--trial-steps", 3)
    done = sdrpn("heads", plain_checkpoint, *files, *tried, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found == json.loads((out / "heads.json").read_text())
    proposal = found["proposal"]
    assert [(trial["tap_layer"], trial["rpn_layers"]) for trial in proposal["trials"]] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    best = max(trial["average_precision"] for trial in proposal["trials"])
    chosen = [trial for trial in proposal["trials"] if trial["tap_layer"] == proposal["tap_layer"]]
    assert any(trial["average_precision"] >= 0.98 * best for trial in chosen)
    assert sorted(path.name for path in out.iterdir()) == ["heads.json", "heads.png", "labels", "taps.png"]
    with Image.open(out / "taps.png") as picture:
        assert picture.width > 300
    without_folder = ("heads", plain_checkpoint, "--data", data, "--images", tmp_path, "--propose")
    assert "name a folder (--out)" in refusal(sdrpn(*without_folder))


def test_the_official_choices() -> None:
    assert by_layer(read_heads("official-7b").grounding) == {14: [13, 24, 26]}
    assert by_layer(read_heads("official-7b").sinks) == {2: list(range(32))}
    assert by_layer(read_heads("official-13b").grounding) == {13: [21, 23, 26], 15: [2], 16: [2, 21, 30]}
    assert by_layer(read_heads("official-13b").sinks) == {16: [17, 22]}


def test_refusals(sdrpn: Command, text_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = write_questions(tmp_path, per_image=1)
    command = ("heads", text_checkpoint, "--data", data, "--max-new-tokens", 2, "--images")
    assert "no image has two questions" in refusal(sdrpn(*command, tmp_path))
    assert "is not a folder" in refusal(sdrpn(*command, tmp_path / "none"))
    assert "device 'nonsense' is none of PyTorch's; expected cpu, cuda, cuda:1, ... (--device cpu)" in refusal(
        sdrpn(*command, tmp_path, "--device", "nonsense")
    )
    assert "the device cuda:99 cannot be used here" in refusal(sdrpn(*command, tmp_path, "--device", "cuda:99"))
    assert "has no answer" in refusal(sdrpn(*command, tmp_path, "--answers", "given"))
    for option, value in (("--tap-layers", 2), ("--rpn-layers", 1), ("--trial-steps", 5)):
        expected = f"{option} is for the trainings of --propose; name both or none"
        assert refusal(sdrpn(*command, tmp_path, option, value)) == expected
    without_tokenizer = ("heads", tiny_checkpoint, "--data", data, "--images", tmp_path)
    assert "has no tokenizer" in refusal(sdrpn(*without_tokenizer))
