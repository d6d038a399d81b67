"""OCRBench (Liu et al., 2024): a thousand questions in ten kinds, from recognising a word to reading forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from sdrpn.evaluation.files import Layout, Row, read_json
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import containment
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import entry, listed_texts, read_rows

__all__ = ["ocrbench_task"]

EXPECTED = "OCRBench.json and OCRBench_Images/, or test-*.parquet, or OCRBench.tsv"
# The source and the kind of questions whose answers are formulas; VLMEvalKit keeps only the kind.
FORMULAS = ("HME100k", "Handwritten Mathematical Expression Recognition")


def ocrbench_task(folder: Path) -> Task:
    """All questions, with kinds as categories; the usual figure is the number of points, of 1000. Raises BadInput."""
    layout = Layout("ocrbench", folder, EXPECTED)
    path, rows = layout.rows("test", table="OCRBench") or _official(layout)
    numbered = [{**row, "number": number} if isinstance(row, dict) else row for number, row in enumerate(rows)]
    return Task(
        name="ocrbench",
        samples=read_rows(path, numbered, lambda row: _sample(layout, row)),
        score=_score,
        metric="containment",
        max_new_tokens=128,
        threshold=0.05,
        preset="reading",
        summarise=_points,
    )


def _official(layout: Layout) -> tuple[Path, Iterable[object]]:
    path = layout.first("OCRBench/OCRBench.json", "OCRBench.json")
    return path, read_json(path)


def _sample(layout: Layout, row: Row) -> Sample:
    picture = row.get("open_picture")
    if picture is None:
        picture = layout.picture(entry(row, "image_path"), "OCRBench_Images", "OCRBench/OCRBench_Images", ".")
    return Sample(
        id=str(row.get("id", row["number"])),
        open_picture=picture,
        question=entry(row, "question").strip(),
        answers=listed_texts(row["answers"] if "answers" in row else row["answer"]),
        category=entry(row, "type", "question_type", "category"),
        details={"source": str(row.get("dataset_name", row.get("dataset", "")))},
    )


def _score(answer: str, sample: Sample) -> float:
    return containment(
        answer, sample.answers, formula=sample.details["source"] in FORMULAS or sample.category in FORMULAS
    )


def _points(records: Sequence[Record]) -> dict[str, float]:
    return {"points": sum(record.score or 0.0 for record in records)}
