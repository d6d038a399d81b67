"""`sdrpn label` on a tiny checkpoint: what the folder holds, resuming, and what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdrpn.cli import label, relabel
from sdrpn.labels import LabelRule, denoise, labelling, usual_sinks
from sdrpn.labels.denoise import RULES
from sdrpn.labels.head_choice import write_heads
from sdrpn.labels.shards import LABEL_COLUMNS, read_shards
from sdrpn.labels.teacher import Teacher
from tests.cli.command import Command, refusal
from tests.labels.data import write_questions

HEADS = ((0, 1), (1, 2), (3, 0))  # on both sides of the tap, which lies after layer 1


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_heads(tmp_path / "heads.json", HEADS, {})
    return write_questions(tmp_path)


def command_for(checkpoint: Path, data: Path, *more: object) -> tuple[object, ...]:
    folder = data.parent
    files = ("--data", data, "--images", folder, "--heads", folder / "heads.json", "--out", folder / "out")
    return ("label", checkpoint, *files, "--max-new-tokens", 4, *more)


def test_a_folder_of_labels(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    import numpy as np

    found = sdrpn(*command_for(text_checkpoint, data, "--shard-questions", 4, "--json")).json()
    out = data.parent / "out"
    assert found == json.loads((out / "labels.json").read_text())
    assert found["grounding_heads"] == [list(head) for head in HEADS]
    attention = list(read_shards(out / "attention"))
    assert [row["id"] for row in attention] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert len(list((out / "attention").iterdir())) == 2
    sinks = usual_sinks(np.array([row["grounding"] for row in attention], np.float32))
    labels = {row["id"]: row["cells"] for row in read_shards(out / "labels")}
    for row in attention:
        hw = tuple(row["grid_hw"])
        expected = denoise(np.array(row["grounding"], np.float32).reshape(hw), sinks.reshape(hw))
        assert labels.get(row["id"]) == (expected.cells.ravel().tolist() if expected.usable else None)
    counts = found["counts"]
    assert counts["labelled"] == len(labels)
    assert sum(counts[key] for key in ("labelled", "oversize", "no_foreground", "no_answer", "not_asked")) == 6
    with Image.open(out / "samples.png") as sheet:
        assert sheet.width > 1000
    assert "grounding_heads" in (out / "report.html").read_text()


def test_the_files_hold_no_answers_and_no_boxes(sdrpn: Command, text_checkpoint: Path, tmp_path: Path) -> None:
    write_heads(tmp_path / "heads.json", HEADS, {})
    data = write_questions(tmp_path, answers=True)
    given = command_for(text_checkpoint, data, "--answers", "given")
    assert sdrpn(*given).code == 0
    out = tmp_path / "out"
    schema = pq.ParquetFile(out / "labels" / "part-00000.parquet").schema_arrow
    assert schema.names == list(LABEL_COLUMNS)
    assert json.loads(schema.metadata[b"sdrpn"])["answers"] == "given"
    rows = list(read_shards(out / "attention"))
    assert [(row["answer"], row["answer_tokens"]) for row in rows] == [(None, 4)] * 6
    assert "There 0" not in "".join(path.read_text("latin-1") for path in out.rglob("*") if path.is_file())


def test_own_answers_do_not_read_those_of_the_data(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    sdrpn(*command_for(text_checkpoint, data))
    (data.parent / "out").rename(data.parent / "without")
    write_questions(data.parent, answers=True)
    sdrpn(*command_for(text_checkpoint, data))
    without, with_answers = (list(read_shards(data.parent / name / "attention")) for name in ("without", "out"))
    assert with_answers == without


def test_a_run_that_was_cut_off_is_resumed(
    sdrpn: Command, text_checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command_for(text_checkpoint, data, "--shard-questions", 2)
    out = data.parent / "out"
    whole = sdrpn(*command, "--json").json()
    expected = list(read_shards(out / "labels"))
    out.rename(data.parent / "whole")

    watch, asked = Teacher.watch_all, list[str]()

    def interrupted(self: Teacher, questions: Any, *more: Any) -> Any:
        asked.extend(question.id for question in questions)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return watch(self, questions, *more)

    monkeypatch.setattr(Teacher, "watch_all", interrupted)
    assert sdrpn(*command).code == 130
    assert "already holds a run; resume it, or name a new folder (--resume)" in refusal(sdrpn(*command))
    assert sdrpn(*command, "--resume", "--json").json() == whole
    assert asked == ["0-0", "0-1", "1-0", "1-1", "1-0", "1-1", "2-0", "2-1"]
    assert list(read_shards(out / "labels")) == expected
    other = refusal(sdrpn(*command, "--resume", "--rows", "last-prompt"))
    assert "was started with other settings (rows)" in other


@pytest.mark.parametrize("verb", [label, relabel])
def test_every_rule_can_be_asked_for(verb: Any) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    (choices,) = (action.choices for action in parser._actions if action.dest == "rule")
    assert choices == tuple(RULES)


def test_what_a_model_of_squares_cannot_do(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    command = command_for(text_checkpoint, data)
    assert "sees every picture as a square" in refusal(sdrpn(*command, "--shape", "square"))
    assert "16 tokens" in refusal(sdrpn(*command, "--image-tokens", "4:16"))
    unknown = command_for(text_checkpoint, data, "--heads", "qwen2.5-vl")
    assert "is neither a file nor one of official-7b, official-13b, qwen2.5-vl-3b-text" in refusal(sdrpn(*unknown))
    assert not (data.parent / "out").exists()


def test_without_a_usable_label_it_says_so(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    done = sdrpn(*command_for(text_checkpoint, data))
    assert (done.code, done.out.count("\n")) == (0, 9)
    assert done.err.splitlines()[-1] == (
        f"sdrpn: warning: {data.parent / 'out'} has no usable label (6 oversize), so that no RPN can be trained on it: "
        "choose other heads with `sdrpn heads`, or another rule with `sdrpn relabel`"
    )


def test_official_heads_are_for_models_of_their_family(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    message = refusal(sdrpn(*command_for(text_checkpoint, data, "--heads", "qwen2.5-vl-7b-text")))
    assert message.startswith("the heads qwen2.5-vl-7b-text are those of a qwen2.5-vl, and the checkpoint is a llava;")
    assert "expected official-7b, official-13b, or a file that `sdrpn heads` wrote" in message
    assert not (data.parent / "out").exists()


def test_a_bad_picture_does_not_stop_the_work(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    (data.parent / "1.png").write_bytes(b"no picture")
    counts = sdrpn(*command_for(text_checkpoint, data, "--json")).json()["counts"]
    assert counts["not_asked"] == 2
    problems = [row["problem"] for row in read_shards(data.parent / "out" / "attention")]
    assert [problem is None for problem in problems] == [True, True, False, False, True, True]
    assert "is not a picture" in problems[2]


def test_sink_heads_are_held_to_the_official_limit() -> None:
    row = {"grounding": [0.1, 0.4, 0.0, 0.0] * 4, "sinks": [0.0, 1e-3, 9e-4, 0.0] * 4, "answer_tokens": 1}
    row |= {"grid_hw": [4, 4]}
    labels = labelling._labels(row, {}, LabelRule(), {})
    assert labels is not None
    assert labels.box_cells == (0, 0, 1, 4)  # without the second column, which is stronger and a sink


def test_refusals(sdrpn: Command, text_checkpoint: Path, data: Path) -> None:
    missing = refusal(sdrpn(*command_for(text_checkpoint, data, "--heads", "official-70b")))
    assert "official-70b is neither a file nor one of official-7b, official-13b" in missing
    other_model = refusal(sdrpn(*command_for(text_checkpoint, data, "--heads", "official-7b")))
    assert "layer 2 head 4 does not exist: the model has layers 0 to 3" in other_model
    no_answers = refusal(sdrpn(*command_for(text_checkpoint, data, "--answers", "given")))
    assert "question 0-0 has no answer" in no_answers
    assert not (data.parent / "out").exists()  # refused before anything was begun
    (data.parent / "heads.json").write_text("{}")
    again = refusal(sdrpn(*command_for(text_checkpoint, data, "--out", data.parent / "out2")))
    assert "is not a choice of heads" in again
