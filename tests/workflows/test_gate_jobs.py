"""From questions to gate labels, a gate and a bundle, for models that look once and twice and for resolutions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrpn.checkpoint import open_checkpoint, write_random_checkpoint
from sdrpn.cli.main import main
from sdrpn.errors import BadCheckpoint, BadInput
from sdrpn.gate import both_looks
from sdrpn.gate.gate_folder import CURVE_NAME, TRAINING_NAME
from sdrpn.gate.labelling import ANSWER_COLUMNS, ANSWERS
from sdrpn.gate.loop import GateLoop
from sdrpn.gate.options import GATE_PRESETS, GateKind, GateOptions
from sdrpn.gate.views import Viewer, model_at_view
from sdrpn.host.part import Part
from sdrpn.labels.shards import read_shard, shard_path, write_shard
from sdrpn.method.policy import RoiChange
from sdrpn.method.roi import Crop
from sdrpn.model import model_from_checkpoint
from sdrpn.model.reference import reference_answer
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.gate_label import GateLabelRequest, label_gate
from sdrpn.workflows.train_gate import GateTrainingRequest, train_gate
from tests.families.qwen.models import KINDS
from tests.labels.data import write_questions
from tests.workflows.recorded_progress import RecordedProgress

RESOLUTIONS = (16, 36, 64, 100)
QUICK = dataclasses.replace(
    GATE_PRESETS["tiny"], epochs=1, batch=12, steps=14, learning_rate=3e-3, validation_share=0.3, taps="fp32"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen") / "model"
    write_random_checkpoint(folder, KINDS["q-zoom"], with_tokenizer=True, roi_gain=3.0)
    return folder


def request_of(checkpoint: Path, folder: Path, **changes: Any) -> GateLabelRequest:
    data = folder / "qa.jsonl" if (folder / "qa.jsonl").exists() else write_questions(folder, images=4, answers=True)
    options = {"max_new_tokens": 2, "agree_with": "highest", "shard_questions": 3, "threads": 1, **changes}
    return GateLabelRequest(CheckpointParts(checkpoint), data, folder, folder / "labels", **options)


def learnable(folder: Path, copies: int = 6) -> None:
    """Replace the answers: whether another look helps depends on the question's last token."""
    (shard, *others) = sorted((folder / ANSWERS).iterdir())
    rows = [row for path in (shard, *others) for row in read_shard(path, ANSWER_COLUMNS)]
    found = []
    for copy in range(copies):
        for number, row in enumerate(rows):
            helps = (number + copy) % 2 == 0
            views = len(row["answers"])
            answers = ["x"] * (views // 2) + ["a"] * (views - views // 2) if helps else ["a"] * views
            ids = [*row["ids_after"][:-1], 40 if helps else 50]
            found.append({**row, "id": f"{row['id']}-{copy}", "ids_after": ids, "answers": answers})
    for path in others:
        path.unlink()
    write_shard(shard, ANSWER_COLUMNS, found, {})


def test_one_look_and_two(text_checkpoint: Path, tmp_path: Path) -> None:
    progress = RecordedProgress()
    labelled = label_gate(request_of(text_checkpoint, tmp_path, threshold=0.2, batch=5, shard_questions=8), progress)
    assert labelled.provenance["views"] == ["one look", "two looks"]
    assert sum(labelled.counts.cases.values()) == 8
    assert labelled.counts.right[1] >= labelled.counts.right[0]
    assert labelled.difference is not None
    assert sum(labelled.difference.values()) == 8
    assert labelled.page.is_file()
    assert progress.ends["gate-label"] == (8, 8)
    rows = [row for path in sorted((labelled.out / ANSWERS).iterdir()) for row in read_shard(path)]
    with open_checkpoint(text_checkpoint) as checkpoint:
        model = model_from_checkpoint(checkpoint)
        policy = RoiChange(0.2, gate_threshold=-1.0).applied_to(checkpoint.policy.roi)
    twice = 0
    for row in rows:
        picture = Image.open(tmp_path / row["image"]).convert("RGB")
        for roi, said in zip((None, policy), row["answers"], strict=True):
            asked: dict[str, Any] = {"roi": roi, "max_new_tokens": 2, "stop_ids": model.spec.prompt.eos_token_ids}
            expected = reference_answer(model, picture, row["ids_before"], row["ids_after"], **asked)
            twice += expected.roi_token_count > 0
            assert said == decoded(text_checkpoint, expected.token_ids)
    assert twice > 0, "a test without a second look says little"


def decoded(checkpoint: Path, ids: tuple[int, ...]) -> str:
    from sdrpn.checkpoint.tokenizer import tokenizer_of
    from sdrpn.text.prompt import decode_text

    with open_checkpoint(checkpoint) as opened:
        return decode_text(tokenizer_of(opened), ids).strip()


def test_resolutions(qwen: Path, tmp_path: Path) -> None:
    labelled = label_gate(request_of(qwen, tmp_path, resolutions=RESOLUTIONS, limit=2))
    assert labelled.provenance["views"] == ["16 tokens", "36 tokens", "64 tokens", "100 tokens"]
    (row, _) = read_shard(shard_path(labelled.out / ANSWERS, 0))
    with open_checkpoint(qwen) as checkpoint:
        model = model_from_checkpoint(checkpoint)
    picture = Image.open(tmp_path / row["image"]).convert("RGB")
    for number, (view, said) in enumerate(zip(labelled.provenance["views"], row["answers"], strict=True)):
        seen = model_at_view(model, view)
        assert list(seen.spec.vision.grid(picture.size).hw) == row["grids"][2 * number : 2 * number + 2]
        asked: dict[str, Any] = {"roi": None, "max_new_tokens": 2, "stop_ids": seen.spec.prompt.eos_token_ids}
        expected = reference_answer(seen, picture, row["ids_before"], row["ids_after"], **asked)
        assert said == decoded(qwen, expected.token_ids)
    assert model.spec.vision.grid(picture.size) != seen.spec.vision.grid(picture.size)


def test_a_question_that_leaves_no_room_for_the_crop(
    text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop = Crop((0, 0, 32, 32))
    monkeypatch.setattr(both_looks, "_crops", lambda model, questions, *others: [(crop,) for _ in questions])
    data = write_questions(tmp_path, images=2, per_image=1)
    asked = request_of(text_checkpoint, tmp_path, batch=4, shard_questions=4)
    (row, _) = read_shard(shard_path(label_gate(asked).out / ANSWERS, 0))
    room = 512 - 2 - 16 - len(row["ids_before"]) - len(row["ids_after"])  # of one look, on 4 x 4 cells
    fitting = {"id": "long", "image": "0.png", "question": row["question"] + "x" * room}
    longer = {**fitting, "id": "longer", "question": fitting["question"] + "x"}
    data.write_text(data.read_text() + "".join(json.dumps(line) + "\n" for line in (fitting, longer)))
    for batch in (1, 4):
        out = label_gate(dataclasses.replace(asked, out=tmp_path / str(batch), batch=batch)).out
        *others, long, longest = read_shard(shard_path(out / ANSWERS, 0))
        assert all(other["problem"] is None for other in others)
        assert "a prompt of 511 tokens and an answer of up to 2 need 513 positions" in longest["problem"]
        assert "a prompt of 526 tokens and an answer of up to 2 need 528" in long["problem"]  # with its 16 cells
        assert long["answers"] is None


@pytest.mark.parametrize("resolutions", [(), RESOLUTIONS])
def test_answers_do_not_depend_on_the_batch(
    qwen: Path, text_checkpoint: Path, tmp_path: Path, resolutions: tuple[int, ...]
) -> None:
    write_questions(tmp_path, images=3)
    (tmp_path / "1.png").write_bytes(b"no picture")
    changes: dict[str, Any] = {"resolutions": resolutions} if resolutions else {"threshold": 0.2}
    asked = request_of(qwen if resolutions else text_checkpoint, tmp_path, max_new_tokens=4, **changes)
    found = []
    for name, batch in (("alone", 1), ("together", 5)):
        labels = label_gate(dataclasses.replace(asked, out=tmp_path / name, batch=batch, shard_questions=5)).out
        found.append([row for path in sorted((labels / ANSWERS).iterdir()) for row in read_shard(path)])
    assert found[0] == found[1]
    assert [row["problem"] is None for row in found[0]] == [True, True, False, False, True, True]


def test_an_interrupted_run_loses_one_shard(
    text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = label_gate(request_of(text_checkpoint, tmp_path))
    expected = [path.read_bytes() for path in sorted((whole.out / ANSWERS).iterdir())]
    own, asked = Viewer.answers_to, list[str]()

    def broken(self: Viewer, questions: Any) -> Any:
        if len(asked) == 4:
            raise KeyboardInterrupt
        asked.extend(question.id for question in questions)
        return own(self, questions)

    request = dataclasses.replace(request_of(text_checkpoint, tmp_path), out=tmp_path / "again")
    monkeypatch.setattr(Viewer, "answers_to", broken)
    with pytest.raises(KeyboardInterrupt):
        label_gate(request)
    assert len(list((tmp_path / "again" / ANSWERS).iterdir())) == 1
    with pytest.raises(BadInput, match="already holds a run; resume it, or name a new folder"):
        label_gate(request)
    with pytest.raises(BadInput, match=r"started with other settings \(max_new_tokens\)"):
        label_gate(dataclasses.replace(request, resume=True, max_new_tokens=3))
    monkeypatch.setattr(Viewer, "answers_to", own)
    label_gate(dataclasses.replace(request, resume=True))
    assert [path.read_bytes() for path in sorted((tmp_path / "again" / ANSWERS).iterdir())] == expected


def test_two_processes_equal_one(text_checkpoint: Path, tmp_path: Path) -> None:
    request = dataclasses.replace(request_of(text_checkpoint, tmp_path), shard_questions=1)
    whole = label_gate(request)
    parts = [dataclasses.replace(request, out=tmp_path / "parts", part=Part(number, 2)) for number in (2, 1, 2)]
    first, last, late = map(label_gate, parts)
    assert (first.is_complete, first.to_json()["counts"]) == (False, None)
    assert last.is_complete
    assert late.counts == last.counts == whole.counts
    names = sorted(path.relative_to(whole.out) for path in whole.out.rglob("*") if path.is_file())
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (whole.out / name).read_bytes(), name


@pytest.fixture(scope="module", params=["llava", "qwen"])
def to_learn(
    request: pytest.FixtureRequest, text_checkpoint: Path, qwen: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Path]:
    """A family, a checkpoint of it, and gate labels that can be learned, beside their pictures."""
    family, folder = request.param, tmp_path_factory.mktemp("to-learn")
    checkpoint = text_checkpoint if family == "llava" else qwen
    resolutions = () if family == "llava" else RESOLUTIONS
    labels = label_gate(request_of(checkpoint, folder, resolutions=resolutions)).out
    learnable(labels)
    return family, checkpoint, labels


@pytest.mark.parametrize("kind", ["layers", "probe"])
def test_a_gate_learns(to_learn: tuple[str, Path, Path], kind: GateKind, tmp_path: Path) -> None:
    family, checkpoint, labels = to_learn
    options = dataclasses.replace(QUICK, kind=kind)
    asked = GateTrainingRequest(
        CheckpointParts(checkpoint), labels, tmp_path / "gate", options, device="cpu", threads=1
    )
    trained = train_gate(asked)
    report = trained.report
    assert report.after.loss < report.before.loss
    assert report.after.auc is not None
    assert report.after.auc > 0.8
    assert report.after.curve.gain_over_random > 0
    # All that the folder has, and what opens with it.
    assert {path.name for path in trained.out.iterdir()} == {
        TRAINING_NAME, CURVE_NAME, "rpn.safetensors", "gate.safetensors", "rpn.json",
        *(["run.json"] if kind == "layers" else []),
    }  # fmt: skip
    with open_checkpoint(checkpoint, rpn=trained.out) as opened, open_checkpoint(checkpoint) as before:
        assert opened.policy.roi.gate_threshold == report.after.threshold
        assert opened.spec.rpn is not None
        assert (opened.spec.rpn.gate_layers, opened.spec.rpn.gate_probe) == (
            (1, False) if kind == "layers" else (0, True)
        )
        assert np.array_equal(
            opened.read("rpn.layers.1.attention.q.weight"), before.read("rpn.layers.1.attention.q.weight")
        )
        model = model_from_checkpoint(opened)
    # The gate scores in the model as it did in training, at a view that it was trained on.
    view = model_at_view(model, "one look" if family == "llava" else "36 tokens")
    picture = Image.open(labels.parent / "0.png").convert("RGB")
    row = next(row for row in read_shard(shard_path(labels / ANSWERS, 0)) if row["image"] == "0.png")
    scores = {}
    for word in (40, 50):
        ids = [*row["ids_after"][:-1], word]
        policy = dataclasses.replace(opened.policy.roi, gate_threshold=0.0)
        answer = reference_answer(view, picture, row["ids_before"], ids, roi=policy, max_new_tokens=1)
        assert answer.gate_logit is not None
        scores[word] = answer.gate_logit
    assert scores[40] > scores[50]
    written = json.loads((trained.out / TRAINING_NAME).read_text())
    assert written["kind"] == kind
    assert written["after"]["curve"][0]["share"] == 0


def test_a_training_that_was_cut_off_goes_on_to_the_same_weights(
    to_learn: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checkpoint, labels = to_learn
    options = dataclasses.replace(QUICK, save_every=3)
    asked = GateTrainingRequest(
        CheckpointParts(checkpoint), labels, tmp_path / "whole", options, device="cpu", threads=1
    )
    whole, out = train_gate(asked), tmp_path / "cut"
    one_step = GateLoop._one_step

    def interrupted(self: GateLoop, *given: Any) -> Any:
        if self.step == 8:
            raise KeyboardInterrupt
        return one_step(self, *given)

    begun = dataclasses.replace(asked, out=out)
    with monkeypatch.context() as patch:
        patch.setattr(GateLoop, "_one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_gate(begun)
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "state"]
    with pytest.raises(BadInput, match="has an unfinished training; resume it, or name a new folder"):
        train_gate(begun)
    with pytest.raises(BadInput, match=r"was started with other settings \(seed\)"):
        train_gate(dataclasses.replace(begun, resume=True, options=dataclasses.replace(options, seed=1)))
    (out / "state").rename(tmp_path / "disk")  # where there is more space
    (out / "state").symlink_to(tmp_path / "disk")
    steps = list[int]()

    def counted(self: GateLoop, *given: Any) -> Any:
        steps.append(self.step)
        return one_step(self, *given)

    monkeypatch.setattr(GateLoop, "_one_step", counted)
    resumed = train_gate(dataclasses.replace(begun, resume=True))
    assert steps == list(range(6, 14))  # from the last saved state on
    assert (out / "gate.safetensors").read_bytes() == (whole.out / "gate.safetensors").read_bytes()
    assert dataclasses.replace(resumed.report, seconds=0) == dataclasses.replace(whole.report, seconds=0)
    assert not (out / "state").is_symlink()
    with pytest.raises(BadInput, match="has a finished training; name a new folder"):
        train_gate(dataclasses.replace(begun, resume=True))


def test_a_random_start_is_another_one(text_checkpoint: Path, tmp_path: Path) -> None:
    labels = label_gate(request_of(text_checkpoint, tmp_path)).out
    learnable(labels, 2)
    found = {}
    for start in ("copied", "random"):
        options = dataclasses.replace(QUICK, start=start, steps=2, batch=2, taps="none")
        asked = GateTrainingRequest(CheckpointParts(text_checkpoint), labels, tmp_path / start, options, device="cpu")
        train_gate(asked)
        with open_checkpoint(text_checkpoint, rpn=tmp_path / start) as opened:
            gate = np.array(opened.read("gate.layers.0.mlp.up.weight"))
            source = np.array(opened.read("llm.layers.2.mlp.up.weight"))
        found[start] = float(np.abs(gate - source).max())
    # One step of warm-up moves a weight by the learning rate at most.
    assert found["copied"] <= 2 * QUICK.learning_rate < found["random"]


def test_what_no_gate_can_be_trained_with(to_learn: tuple[str, Path, Path], tmp_path: Path) -> None:
    family, checkpoint, labels = to_learn
    asked = GateTrainingRequest(CheckpointParts(checkpoint), labels, tmp_path / "gate", QUICK, device="cpu", threads=1)
    other = "qwen3-vl-4b" if family == "qwen" else "qwen2.5-vl-7b"
    with pytest.raises(BadInput, match=f"the preset {other} is the training of a .* and the checkpoint is a {family}"):
        train_gate(dataclasses.replace(asked, preset=other))
    with pytest.raises(BadInput, match="1 step of 12 is all warm-up, at a learning rate of 0"):
        train_gate(dataclasses.replace(asked, options=dataclasses.replace(QUICK, steps=1)))
    assert not (tmp_path / "gate").exists()


def test_labels_that_no_gate_learns_from(
    text_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_questions(tmp_path, images=1, answers=True)
    files = ("--data", data, "--images", tmp_path, "--out", tmp_path / "out", "--max-new-tokens", 2)
    assert main(["gate-label", *map(str, (text_checkpoint, *files, "--agree-with", "highest"))]) == 1
    said = capsys.readouterr()
    assert "in a balanced set" in said.out
    assert "for `sdrpn train --gate`" not in said.err
    assert said.err.splitlines()[-1] == (
        f"sdrpn: error: {tmp_path / 'out'} has no questions that need another look, so that a gate would learn one "
        "answer for all: ask about smaller details, or begin with a lower view"
    )
    assert main(["gate-label", *map(str, (text_checkpoint, *files, "--resume"))]) == 2
    longer = ("--out", tmp_path / "truth", "--max-new-tokens", 8, "--json")
    assert main(["gate-label", *map(str, (text_checkpoint, *files, *longer))]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["counts"]["cases"]["unsettled"] == 2
    assert said.err.splitlines()[-1].endswith(
        "or begin with a lower view, or compare with the highest view (--agree-with highest)"
    )


def test_labels_of_another_model_are_refused(text_checkpoint: Path, tmp_path: Path) -> None:
    labels = label_gate(request_of(text_checkpoint, tmp_path)).out
    learnable(labels, 1)
    with open_checkpoint(text_checkpoint) as opened:
        write_random_checkpoint(tmp_path / "other", opened.spec, with_tokenizer=True, seed=9)
    asked = GateTrainingRequest(CheckpointParts(tmp_path / "other"), labels, tmp_path / "gate", QUICK, device="cpu")
    with pytest.raises(BadInput, match="made by another checkpoint, or with another RPN"):
        train_gate(asked)
    assert not (tmp_path / "gate").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"resolutions": (16, 36, 36)},
            "resolutions are 16, 36, 36; expected three or more numbers of image tokens, asc",
        ),
        ({"resolutions": (36, 64)}, "resolutions are 36, 64; expected three or more"),
        ({}, "resolutions are not given; expected three or more"),
    ],
)
def test_resolutions_that_are_none(qwen: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        label_gate(request_of(qwen, tmp_path, **changes))
    assert not (tmp_path / "labels").exists()


def test_what_squares_and_bare_models_lack(text_checkpoint: Path, plain_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="turns every picture into 16 tokens and is asked with one look and with two"):
        label_gate(request_of(text_checkpoint, tmp_path, resolutions=RESOLUTIONS))
    with pytest.raises((BadInput, BadCheckpoint), match="has no RPN, so there is no second look"):
        label_gate(request_of(plain_checkpoint, tmp_path))


def test_questions_without_answers_need_the_highest_view(text_checkpoint: Path, tmp_path: Path) -> None:
    write_questions(tmp_path, images=1)
    with pytest.raises(BadInput, match="has no answer to compare with") as caught:
        label_gate(request_of(text_checkpoint, tmp_path, agree_with="truth"))
    assert caught.value.options == ("agree_with highest",)
    assert label_gate(request_of(text_checkpoint, tmp_path)).difference is None


def test_an_unreadable_picture_is_counted(text_checkpoint: Path, tmp_path: Path) -> None:
    write_questions(tmp_path, images=2, answers=True)
    (tmp_path / "0.png").write_bytes(b"no picture")
    found = label_gate(request_of(text_checkpoint, tmp_path))
    assert found.counts.not_asked == 2
    assert sum(found.counts.cases.values()) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"validation_share": 0.0}, "validation_share is 0.0; expected a number above 0"),
        ({"penalty": -1.0}, "penalty is -1.0"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_options_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        GateOptions(**changes)
