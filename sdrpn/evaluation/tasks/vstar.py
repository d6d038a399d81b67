"""V*Bench (Wu and Xie, 2023): small objects in large photographs, with boxes around what is asked for."""

from __future__ import annotations

from pathlib import Path

from sdrpn.evaluation.files import Layout, Row, read_json, read_json_lines
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import any_letter
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import entry, given_options, read_rows
from sdrpn.method.grids import Box

__all__ = ["vstar_task"]

EXPECTED = (
    "test_questions.jsonl, direct_attributes/ and relative_position/ with a .json file beside each picture, or "
    "test-*.parquet or VStarBench.tsv, which have no boxes"
)
INSTRUCTION = "Answer with the option's letter from the given choices directly."


def vstar_task(folder: Path) -> Task:
    """All 191 questions as worded in `test_questions.jsonl`, with the boxes of the annotations. Raises BadInput."""
    layout = Layout("vstar", folder, EXPECTED)
    path = layout.maybe("test_questions.jsonl")
    table = layout.rows("test", table="VStarBench") if path is None else None
    if table is not None:
        samples = read_rows(*table, _sample_of_table)
    else:
        path = layout.first("test_questions.jsonl")
        samples = read_rows(path, read_json_lines(path), lambda row: _sample(layout, row))
    return Task(
        name="vstar",
        samples=samples,
        score=lambda answer, sample: float(any_letter(answer) == sample.answers[0]),
        metric="letter match",
        max_new_tokens=16,
        threshold=0.10,
        preset="search",
    )


def _sample(layout: Layout, row: Row) -> Sample:
    name = entry(row, "image")
    return Sample(
        id=entry(row, "question_id"),
        open_picture=layout.picture(name),
        question=entry(row, "text"),
        answers=(entry(row, "label").strip().upper(),),
        boxes_xyxy_px=_boxes(layout.folder / Path(name).with_suffix(".json")),
        category=entry(row, "category"),
    )


def _sample_of_table(row: Row) -> Sample:
    """A sample from lmms-lab's Parquet files, with the full prompt, or from VLMEvalKit's, with separate options."""
    return Sample(
        id=entry(row, "question_id", "index"),
        open_picture=row["open_picture"],
        question=entry(row, "text") if "text" in row else _with_options(row),
        answers=(entry(row, "label", "answer").strip().upper(),),
        category=entry(row, "category"),
    )


def _with_options(row: Row) -> str:
    """The prompt as worded in `test_questions.jsonl`."""
    options = "".join(f"\n({letter}) {text}" for letter, text in given_options(row).items())
    return f"{entry(row, 'question').strip()}{options}\n{INSTRUCTION}"


def _boxes(path: Path) -> tuple[Box, ...]:
    """The boxes of the annotation beside the picture, stored as x, y, width, height; none without an annotation."""
    if not path.is_file():
        return ()
    boxes = []
    for box in read_json(path)["bbox"]:
        x, y, width, height = (round(float(edge)) for edge in box)
        boxes.append((x, y, x + max(1, width), y + max(1, height)))
    return tuple(boxes)
