"""`sdrpn quantize`: the report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.command import Command, refusal
from tests.pictures import photo


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.fromarray(photo()).save(tmp_path / "images" / "a.png")
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps({"image": "a.png", "question": "What does the sign say?"}) + "\n", "utf-8")
    return path


def arguments(checkpoint: Path, data: Path, *more: object) -> tuple[object, ...]:
    return ("quantize", checkpoint, "--data", data, "--images", data.parent / "images", "--max-new-tokens", 2, *more)


def test_a_report_is_written(sdrpn: Command, text_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    outcome = sdrpn(*arguments(text_checkpoint, data, "--choices", "int8-b32-rtn,int4-b32-rtn", "--report", report))
    assert outcome.code == 0
    assert "--keep " in outcome.out
    costs = json.loads((report / "sensitivity.json").read_text("utf-8"))
    parts = ["vision", *(f"layers.{n}" for n in range(4)), "rpn", "lm_head", "all layers"]
    assert [cost["part"] for cost in costs[::2]] == parts
    eight, four = ([cost["roi_cosine"] for cost in costs[start::2]] for start in (0, 1))
    assert sum(eight) > sum(four)
    assert (report / "sensitivity.md").read_text("utf-8").count("\n| ") == 2 + 2 * len(parts)
    with Image.open(report / "sensitivity.png") as picture:
        picture.load()


def test_without_an_rpn_answers_alone_are_compared(sdrpn: Command, plain_checkpoint: Path, data: Path) -> None:
    outcome = sdrpn(*arguments(plain_checkpoint, data, "--parts", "lm_head", "--choices", "int8-b32-rtn", "--json"))
    found = json.loads(outcome.out)
    (cost,) = found["costs"]
    assert list(found) == ["format_version", "questions", "costs", "worth_keeping"]
    assert (cost["roi_cosine"], cost["box_iou"], cost["same_decision"]) == (None, None, None)
    assert cost["same_answer"] in (0.0, 1.0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--choices", "int3-b32-rtn"), "expected intBITS-bBLOCK-METHOD"),
        (("--choices", "int4-b32-gptq"), "the method is gptq; expected rtn or hqq"),
        (("--choices", "int4-b9-rtn"), "block size is 9; expected one of 16, 32, 64, 128"),
        (
            ("--choices", "int4-b128-rtn"),
            "vision has a matrix of 32 inputs, which blocks of 128 do not divide; choose ",
        ),
        (("--choices", ","), "no way to round is given; expected intBITS-bBLOCK-METHOD"),
        (("--parts", "layers.9"), "there is no layers.9; expected vision, layers.0, "),
        (("--parts", ","), "there is no name; expected vision"),
    ],
)
def test_refusals(sdrpn: Command, text_checkpoint: Path, data: Path, more: tuple[str, ...], told: str) -> None:
    assert told in refusal(sdrpn(*arguments(text_checkpoint, data, *more)))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (None, "qa.jsonl holds no question; expected one JSON object per line"),
        ({"image": "b.png", "question": "Where?"}, "b.png does not exist; expected the path of a picture"),
        ({"image": "text.png", "question": "Where?"}, "text.png is not a picture that can be read; expected one of "),
        ({"image": "a.png"}, "qa.jsonl line 1: question is None; expected text"),
    ],
)
def test_questions_and_pictures_that_are_none(
    sdrpn: Command, text_checkpoint: Path, data: Path, line: dict[str, str] | None, told: str
) -> None:
    (data.parent / "images" / "text.png").write_text("no picture")
    data.write_text("" if line is None else json.dumps(line) + "\n", "utf-8")
    assert told in refusal(sdrpn(*arguments(text_checkpoint, data)))


def test_a_report_is_not_written_over(sdrpn: Command, text_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    assert "exists and is not an empty folder" in refusal(
        sdrpn(*arguments(text_checkpoint, data, "--report", tmp_path))
    )
