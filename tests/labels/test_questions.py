"""Files of questions: both forms, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdrpn.errors import BadInput
from sdrpn.images.names import leads_out
from sdrpn.labels.questions import DataQuestion, read_questions


def test_both_forms(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]
    records = [
        {"image": "a.png", "question": "What is it?"},
        {"image": "b/a.png", "question": "And here?", "id": 7, "answer": "A dog"},
        {"image": "a.png", "id": "x", "conversations": [*turns, *turns]},
    ]
    path = tmp_path / "qa.jsonl"
    path.write_text("\n\n".join(map(json.dumps, records)) + "\n", "utf-8")
    assert read_questions(path) == [
        DataQuestion("1", "a.png", "What is it?"),
        DataQuestion("7", "b/a.png", "And here?", "A dog"),
        DataQuestion("x", "a.png", "What is it?", "A cat."),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("3", "line 1 is int; expected an object"),
        ("[]", "holds no question"),
        ("[{", "is not JSON"),
        ("[1]", "entry 1 is int; expected an object"),
        ('{"image": "a.png"}', "line 1: question is None; expected text"),
        ('{"question": "?"}', "line 1: image is None; expected text"),
        ('{"image": "../a.png", "question": "?"}', "expected a path inside the folder of images"),
        ('{"image": "/a.png", "question": "?"}', "expected a path inside the folder of images"),
        ('{"image": "a.png", "question": "?", "answer": 3}', "answer is 3; expected text"),
        ('{"image": "a.png", "conversations": []}', "conversations is not a list of turns"),
        ('{"image": "a.png", "conversations": [{"from": "gpt", "value": "?"}]}', "the first turn is from 'gpt'"),
        (" ", "holds no question"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "qa.jsonl"
    path.write_text(line, "utf-8")
    with pytest.raises(BadInput, match=message):
        read_questions(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.jsonl does not exist"):
        read_questions(tmp_path / "none.jsonl")


def test_llavas_own_training_list(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": "A cat."}]
    entries = [
        {"id": "7", "image": "coco/a.jpg", "conversations": turns},
        {"id": "8", "conversations": turns},  # of its text-only part
        {"id": "9", "image": "coco/b.jpg", "conversations": turns},
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(entries, indent=2), "utf-8")
    assert read_questions(path) == [
        DataQuestion("7", "coco/a.jpg", "What is it?", "A cat."),
        DataQuestion("9", "coco/b.jpg", "What is it?", "A cat."),
    ]


def test_llavas_own_question_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question_id": 3, "image": "a.jpg", "text": "What?", "category": "conv"}\n', "utf-8")
    assert read_questions(path) == [DataQuestion("3", "a.jpg", "What?")]


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png", "..\\a.png", "C:\\a.png", "\\\\host\\a.png"])
def test_names_that_lead_out(name: str) -> None:
    assert leads_out(name)


@pytest.mark.parametrize("name", ["a.png", "b/a.png", "./a.png", "..a.png", "b/a..png"])
def test_names_that_stay(name: str) -> None:
    assert not leads_out(name)
