"""`sdrpn train` on a tiny checkpoint: what it writes, that it learns, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint
from sdrpn.cli import train
from sdrpn.train.loop import TrainLoop
from tests.cli.command import Command, refusal
from tests.train.data import write_labels

SMALL = ("--preset", "tiny", "--device", "cpu", "--tap-layer", 2, "--rpn-layers", 2, "--batch", 8, "--micro-batch", 8)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_labels(tmp_path)


@pytest.mark.parametrize("scheme", [None, "q-zoom"])
def test_the_scheme_of_a_training_is_not_the_checkpoints(scheme: str | None) -> None:
    """Which has no RPN yet."""
    args = argparse.Namespace(checkpoint=Path("checkpoint"), scheme=scheme)
    assert train._checkpoint(args).scheme == "auto"


def test_an_rpn_is_trained_and_exported(sdrpn: Command, plain_checkpoint: Path, labels: Path) -> None:
    out = labels.parent / "rpn"
    command = ("train", plain_checkpoint, "--labels", labels, "--out", out, *SMALL)
    done = sdrpn(*command, "--steps", 40, "--validation-share", 0.2, "--json")
    assert done.code == 0, done.err
    made = json.loads(done.out)  # on a busy machine there is progress on stderr
    assert (made["steps"], made["pairs"], made["held_out_pairs"]) == (40, 20, 4)
    first, *_, last = made["validations"]
    assert (first["step"], last["step"]) == (0, 40)
    assert last["loss"] < 0.7 * first["loss"]
    assert sorted(path.name for path in out.iterdir()) == [
        "curves.png",
        "rpn.json",
        "rpn.safetensors",
        "run.json",
        "tensorboard",
        "training.json",
    ]
    with Image.open(out / "curves.png") as picture:
        assert picture.width > 300
    training = json.loads((out / "training.json").read_text())
    assert len(training["losses"]) == 40
    assert training["losses"][-1] == made["loss"]
    with open_checkpoint(plain_checkpoint, rpn=out) as checkpoint:
        assert (checkpoint.spec.tap_layer, checkpoint.spec.rpn is not None) == (2, True)
    bundle = labels.parent / "bundle"
    assert sdrpn("export", plain_checkpoint, "--rpn", out, "--out", bundle, "--json").json()["rpn"] is True


@pytest.mark.parametrize("taps", ["fp32", "none"])
def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(
    sdrpn: Command, plain_checkpoint: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, taps: str
) -> None:
    whole, out = labels.parent / "whole", labels.parent / "rpn"
    numbers = ("--steps", 12, "--save-every", 3, "--validations", 3, "--taps", taps)
    command = ("train", plain_checkpoint, "--labels", labels, *SMALL, *numbers, "--out")
    assert sdrpn(*command, whole).code == 0

    one_step = TrainLoop._one_step

    def interrupted(self: TrainLoop, pairs: Any, rate: float) -> Any:
        if self.step == 8:
            raise KeyboardInterrupt
        return one_step(self, pairs, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoop, "_one_step", interrupted)
        assert sdrpn(*command, out).code == 130
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "state", "tensorboard"]
    assert "resume it, or name a new folder (--resume)" in refusal(sdrpn(*command, out))
    assert "with other settings (seed)" in refusal(sdrpn(*command, out, "--resume", "--seed", 1))
    for name in ("run.json", "state/history.json", "state/optimizer.bin"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[: len(content) // 2])
        message = refusal(sdrpn(*command, out, "--resume"))
        assert ("start again" if name.startswith("state") else "name a new folder") in message
        (out / name).write_bytes(content)
    assert sdrpn(*command, out, "--resume").code == 0
    assert (out / "rpn.safetensors").read_bytes() == (whole / "rpn.safetensors").read_bytes()
    histories = [json.loads((folder / "training.json").read_text()) for folder in (whole, out)]
    for history in histories:
        del history["seconds"]
    assert histories[0] == histories[1]
    assert "has a finished training" in refusal(sdrpn(*command, out, "--resume"))


def test_labels_of_another_checkpoint_are_warned_of(sdrpn: Command, plain_checkpoint: Path, labels: Path) -> None:
    about = json.loads((labels / "labels.json").read_text())
    (labels / "labels.json").write_text(json.dumps(about | {"checkpoint_sha256": "0" * 64}))
    done = sdrpn("train", plain_checkpoint, "--labels", labels, "--out", labels.parent / "rpn", *SMALL, "--steps", 2)
    assert done.code == 0
    assert "sdrpn: warning: the labels were made by another checkpoint" in done.err


def test_refusals(sdrpn: Command, plain_checkpoint: Path, labels: Path) -> None:
    command = ("train", plain_checkpoint, "--labels", labels, "--out", labels.parent / "rpn")
    assert "the tap lies after layer 15; expected 1 to 3" in refusal(sdrpn(*command))
    assert "has no labels.json" in refusal(sdrpn(*command, *SMALL, "--labels", labels / "labels"))
    other_grid = write_labels(labels.parent / "other", grid_side=2)
    assert "have 4 cells per image and the checkpoint sees 16" in refusal(
        sdrpn(*command, *SMALL, "--labels", other_grid)
    )
    assert "the preset qwen2.5-vl-7b is the training of a qwen2.5-vl, and the checkpoint is a llava; expected off" in (
        refusal(sdrpn(*command, *SMALL, "--preset", "qwen2.5-vl-7b"))
    )
    assert "1 step of 8 is all warm-up, at a learning rate of 0, so that nothing would be learned; expected 2" in (
        refusal(sdrpn(*command, *SMALL, "--steps", 1))
    )
    (labels.parent / "images").rename(labels.parent / "elsewhere")
    assert "name it (--images)" in refusal(sdrpn(*command, *SMALL))
    assert not (labels.parent / "rpn").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--allowed-loss", 0), "--allowed-loss is for the training of a gate; add --gate"),
        (("--gate", "--scheme", "q-zoom"), "--scheme is for the training of an RPN; leave it out"),
        (("--gate", "--penalty", 0), "--penalty is for a probe; add --gate-kind probe, or leave it out"),
        (("--gate", "--gate-kind", "probe", "--gate-layers", 2), "--gate-layers is for a gate of layers"),
        (("--gate", "--gate-kind", "probe", "--learning-rate", 0), "--learning-rate is for a gate of layers"),
        (("--gate", "--gate-kind", "probe", "--resume"), "--resume is for a gate of layers"),
        (("--gate", "--gate-kind", "probe", "--epochs", 2), "a probe has none and is fitted at once; leave it out"),
    ],
)
def test_what_would_be_ignored_is_refused(
    sdrpn: Command, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    command = ("train", tmp_path / "checkpoint", "--labels", tmp_path / "labels", "--out", tmp_path / "out")
    assert message in refusal(sdrpn(*command, *options))
    assert not (tmp_path / "out").exists()
