"""Gate labels in a folder: what is read, what is drawn of it for a training, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdrpn.errors import BadInput
from sdrpn.gate.gate_set import GateSample, drawn_samples, read_gate_labels, seen_samples, split_questions
from sdrpn.gate.labelling import ANSWER_COLUMNS, ANSWERS, GATE_NAME
from sdrpn.gate.rule import GateRule
from sdrpn.labels.shards import shard_path, write_shard

VIEWS = ("16 tokens", "32 tokens", "64 tokens", "128 tokens", "256 tokens")
ENOUGH, AGAIN, LATE = ("a",) * 5, ("x", "y", "z", "a", "a"), ("x", "a", "a", "a", "a")


def write_answers(folder: Path, answers: Sequence[tuple[str, ...]], **changes: Any) -> Path:
    """One question per picture, about the answer `a`."""
    rows = [
        {
            "id": str(number),
            "image": f"{number}.png",
            "question": "?",
            "truth": "a",
            "ids_before": [1, 5],
            "ids_after": [7, 8],
            "grids": [side for view in range(len(given)) for side in (2 + view, 3)],
            "answers": list(given),
            "problem": None,
            **changes,
        }
        for number, given in enumerate(answers)
    ]
    write_shard(shard_path(folder / ANSWERS, 0), ANSWER_COLUMNS, rows, {})
    settling = 2 if len(answers[0]) > 2 else 1
    about = {"views": list(VIEWS[: len(answers[0])]), "rule": dataclasses.asdict(GateRule(settling=settling))}
    (folder / GATE_NAME).write_text(json.dumps(about))
    return folder


def test_rows_become_prompts_at_every_view(tmp_path: Path) -> None:
    labels = read_gate_labels(write_answers(tmp_path, [ENOUGH, AGAIN]))
    assert labels.views == VIEWS
    assert [question.judged.case for question in labels.questions] == ["enough", "again"]
    assert labels.questions[1].prompt(3).cells.shape == (5, 3)
    assert labels.questions[1].prompt(3).ids_after == (7, 8)


def test_draws_are_those_of_the_reference(tmp_path: Path) -> None:
    labels = read_gate_labels(write_answers(tmp_path, [ENOUGH] * 300 + [AGAIN] * 200))
    samples = drawn_samples(labels, range(500), 0, balanced=True)
    enough, again = ([sample for sample in samples if (sample.question < 300) is kind] for kind in (True, False))
    assert (len(enough), len(again)) == (200, 200)
    # Right everywhere: any view but the two that settle it. Wrong at first: one of the two highest wrong views.
    assert {(sample.view, sample.label) for sample in enough} == {(0, False), (1, False), (2, False)}
    assert {(sample.view, sample.label) for sample in again} == {(1, True), (2, True)}


def test_some_draws_are_where_the_answer_is_right_already(tmp_path: Path) -> None:
    labels = read_gate_labels(write_answers(tmp_path, [ENOUGH] * 200 + [LATE] * 200))
    samples = [sample for sample in drawn_samples(labels, range(400), 0, balanced=True) if sample.question >= 200]
    wrong = [sample for sample in samples if sample.label]
    assert {sample.view for sample in wrong} == {0}
    assert {sample.view for sample in samples if not sample.label} == {1, 2}
    assert 0.8 < len(wrong) / len(samples) < 0.97


def test_a_seed_is_a_draw(tmp_path: Path) -> None:
    labels = read_gate_labels(write_answers(tmp_path, [ENOUGH, AGAIN, LATE] * 8))
    first = drawn_samples(labels, range(24), 3, balanced=True)
    assert first == drawn_samples(labels, range(24), 3, balanced=True)
    assert first != drawn_samples(labels, range(24), 4, balanced=True)
    assert len(drawn_samples(labels, range(24), 3, balanced=False)) == 24


def test_what_a_gate_meets_has_every_lower_view(tmp_path: Path) -> None:
    labels = read_gate_labels(write_answers(tmp_path, [ENOUGH, AGAIN]))
    assert seen_samples(labels, [1]) == [GateSample(1, view, True) for view in (0, 1, 2)]
    assert not any(sample.label for sample in seen_samples(labels, [0]))


def test_one_look_and_two(tmp_path: Path) -> None:
    labels = read_gate_labels(write_answers(tmp_path, [("a", "a"), ("x", "a"), ("x", "x")] * 4))
    assert {(sample.view, sample.label) for sample in drawn_samples(labels, range(12), 0, balanced=True)} == {
        (0, False), (0, True)
    }  # fmt: skip
    split = split_questions(labels, 0.25, 0)
    assert len(split.held_out) == 3
    assert not {*split.train} & {*split.held_out}


@pytest.mark.parametrize(
    ("answers", "message"),
    [([ENOUGH] * 3, "no questions that need another look"), ([AGAIN] * 3, "no questions that are right at every view")],
)
def test_labels_of_one_kind_are_refused(tmp_path: Path, answers: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_gate_labels(write_answers(tmp_path, answers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids_after": [7, -2]}, "has no tokens, or one below 0"),
        ({"ids_after": None}, "has no tokens"),
        ({"image": "../a.png"}, r"names the image '\.\./a\.png'; expected a path inside"),
        ({"grids": [2, 3]}, "has 5 answers and 1 grids for 5 views"),
    ],
)
def test_rows_that_gate_label_never_writes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_gate_labels(write_answers(tmp_path, [ENOUGH, AGAIN], **changes))


def test_a_folder_that_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no gate\.json; expected a folder that `sdrpn gate-label` finished"):
        read_gate_labels(tmp_path)
    write_answers(tmp_path, [ENOUGH, AGAIN])
    (tmp_path / GATE_NAME).write_text(json.dumps({"views": ["one look", "two looks"], "rule": {"other": 1}}))
    with pytest.raises(BadInput, match="has an unknown rule"):
        read_gate_labels(tmp_path)
