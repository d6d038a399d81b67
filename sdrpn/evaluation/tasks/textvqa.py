"""TextVQA (Singh et al., 2019): questions about text in photographs, answered by ten people each."""

from __future__ import annotations

from pathlib import Path

from sdrpn.evaluation.files import Layout, Row, read_json
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import SHORT_ANSWER, entry, listed_texts, read_rows
from sdrpn.evaluation.vqa_accuracy import vqa_accuracy

__all__ = ["textvqa_task"]

EXPECTED = "TextVQA_0.5.1_val.json and train_images/, or validation-*.parquet, or TextVQA_VAL.tsv"


def textvqa_task(folder: Path) -> Task:
    """The validation split. Raises BadInput."""
    layout = Layout("textvqa", folder, EXPECTED)
    table = layout.rows("validation", table="TextVQA_VAL")
    if table is not None:
        samples = read_rows(*table, lambda row: _sample(layout, row))
    else:
        path = layout.first("TextVQA_*_val.json")
        document = read_json(path)
        rows = document.get("data", ()) if isinstance(document, dict) else ()
        samples = read_rows(path, rows, lambda row: _sample(layout, row))
    return Task(
        name="textvqa",
        samples=samples,
        score=lambda answer, sample: vqa_accuracy(answer, sample.answers),
        metric="VQA accuracy",
        max_new_tokens=16,  # lmms-eval leaves it to the model; the true answers are a word or a phrase
        threshold=0.15,
        preset="scene",
    )


def _sample(layout: Layout, row: Row) -> Sample:
    picture = row.get("open_picture") or layout.picture(f"{entry(row, 'image_id')}.jpg", "train_images", "images", ".")
    return Sample(
        id=entry(row, "question_id", "index"),
        open_picture=picture,
        question=entry(row, "question").capitalize() + SHORT_ANSWER,
        answers=listed_texts(row["answers"] if "answers" in row else row["answer"]),
    )
