"""ChartQA (Masry et al., 2022): questions about charts, half of them written by people, half generated."""

from __future__ import annotations

from pathlib import Path

from sdrpn.evaluation.files import Layout, Row, read_json
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import relaxed_match
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import entry, listed_texts, read_rows

__all__ = ["chartqa_task"]

EXPECTED = "test/test_human.json, test/test_augmented.json and test/png/, or test-*.parquet, or ChartQA_TEST.tsv"
INSTRUCTION = "\nAnswer the question with a single word."
PARTS = ("human", "augmented")
WRITERS = {"0": "human", "1": "augmented", "machine": "augmented"}  # HuggingFaceM4's human_or_machine


def chartqa_task(folder: Path) -> Task:
    """The test split, with the two kinds of questions as categories. Raises BadInput."""
    layout = Layout("chartqa", folder, EXPECTED)
    table = layout.rows("test", table="ChartQA_TEST")
    if table is not None:
        samples = list(read_rows(*table, lambda row: _sample(layout, row, None)))
    else:
        samples = [sample for part in PARTS for sample in _read_part(layout, part)]
    return Task(
        name="chartqa",
        samples=samples,
        score=lambda answer, sample: relaxed_match(answer, sample.answers[0]),
        metric="relaxed accuracy",
        max_new_tokens=16,
        threshold=0.15,
        preset="chart",
    )


def _read_part(layout: Layout, part: str) -> list[Sample]:
    path = layout.first(f"test/test_{part}.json", f"test_{part}.json")
    rows = [
        {**row, "id": f"{part}-{number}"} if isinstance(row, dict) else row
        for number, row in enumerate(read_json(path), start=1)
    ]
    return list(read_rows(path, rows, lambda row: _sample(layout, row, part)))


def _sample(layout: Layout, row: Row, part: str | None) -> Sample:
    kind = _kind(row) if part is None else part
    answers = (str(row["label"]),) if part is not None else listed_texts(row.get("answer", row.get("label")))
    question = entry(row, "query", "question")
    return Sample(
        id=str(row.get("id") or f"{kind}-{question}"),
        open_picture=row.get("open_picture") or layout.picture(entry(row, "imgname"), "test/png", "png"),
        question=question + INSTRUCTION,
        answers=answers,
        category=kind,
    )


def _kind(row: Row) -> str:
    """Who wrote a question; copies of the data set spell it human_test, test_human, or 0."""
    if "human_or_machine" in row:
        writer = str(row["human_or_machine"])
        return WRITERS.get(writer, writer)
    return entry(row, "type", "split").removesuffix("_test").removeprefix("test_")
