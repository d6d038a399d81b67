"""DocVQA (Mathew et al., 2021) and InfographicVQA (2022): questions about scanned pages, and about infographics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdrpn.evaluation.files import Layout, Row, read_json
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import anls
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import SHORT_ANSWER, entry, listed_texts, read_rows

__all__ = ["docvqa_task", "infovqa_task"]

# Folders of both in their common repository on Hugging Face, and VLMEvalKit's tables.
FOLDERS = {"docvqa": "DocVQA", "infovqa": "InfographicVQA"}
TABLES = {"docvqa": "DocVQA_VAL", "infovqa": "InfoVQA_VAL"}


def docvqa_task(folder: Path) -> Task:
    """The validation split. Raises BadInput."""
    layout = Layout(
        "docvqa",
        folder,
        "val_v1.0_withQT.json (or val_v1.0.json) and documents/, or validation-*.parquet, or DocVQA_VAL.tsv",
    )
    patterns = ("val_v*_withQT.json", "val_v*.json")
    # Some names begin with the folder, and some copies of the data lack it.
    return _task(layout, patterns, 0.10, lambda row: (entry(row, "image"), ("", "documents", "images")))


def infovqa_task(folder: Path) -> Task:
    """The validation split. Raises BadInput."""
    layout = Layout(
        "infovqa",
        folder,
        "infographicsVQA_val_v1.0_withQT.json (or infographicsVQA_val_v1.0.json) and infographicsvqa_images/, or "
        "validation-*.parquet, or InfoVQA_VAL.tsv",
    )
    patterns = ("infographic*VQA_val_v*_withQT.json", "infographic*VQA_val_v*.json")
    folders = ("infographicsvqa_images", "infographicVQA_val_v1.0_images", "images", "")
    return _task(layout, patterns, 0.15, lambda row: (entry(row, "image_local_name"), folders))


def _task(
    layout: Layout, patterns: tuple[str, ...], threshold: float, place: Callable[[Row], tuple[str, tuple[str, ...]]]
) -> Task:
    def sample(row: Row) -> Sample:
        picture = row.get("open_picture")
        if picture is None:
            name, folders = place(row)
            picture = layout.picture(name, *folders)
        return Sample(
            id=entry(row, "questionId", "question_id", "index"),
            open_picture=picture,
            question=entry(row, "question") + SHORT_ANSWER,
            answers=listed_texts(row["answers"] if "answers" in row else row["answer"]),
        )

    table = layout.rows("validation", FOLDERS[layout.task], table=TABLES[layout.task])
    if table is not None:
        samples = read_rows(*table, sample)
    else:
        path = layout.first(*patterns)
        document = read_json(path)
        samples = read_rows(path, document.get("data", ()) if isinstance(document, dict) else (), sample)
    return Task(
        name=layout.task,
        samples=samples,
        score=lambda answer, sample: anls(answer, sample.answers),
        metric="ANLS",
        max_new_tokens=32,
        threshold=threshold,
        preset="document" if layout.task == "docvqa" else "scene",
    )
