"""HR-Bench (Wang et al., 2024): photographs of 4K and 8K, every question asked with its options in several orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from sdrpn.evaluation.files import Layout, Row, read_parquet, read_tsv
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import matching_option
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import OPTION_LETTERS, entry, given_options, read_rows

__all__ = ["SIZES", "hrbench_task"]

SIZES = ("4k", "8k")
INSTRUCTION = "Answer the option letter directly."


def hrbench_task(folder: Path, size: str = "4k") -> Task:
    """HR-Bench at one of the two sizes, with "single" and "cross" as categories. Raises BadInput."""
    layout = Layout("hrbench", folder, f"hr_bench_{size}.parquet or .tsv, or HRBench{size.upper()}.tsv")
    # From the author, in the hub's own conversion, and from VLMEvalKit.
    shards = layout.every(f"**/hr_bench_{size}*.parquet") or layout.every(f"**/hrbench_{size}-*.parquet")
    path = layout.first(
        f"**/hr_bench_{size}*.parquet",
        f"**/hrbench_{size}-*.parquet",
        f"**/hr_bench_{size}.tsv",
        f"**/HRBench{size.upper()}.tsv",
    )
    rows = read_parquet(shards) if shards else read_tsv(path)
    return Task(
        name="hrbench",
        samples=read_rows(path, rows, _sample),
        score=_score,
        metric="letter match",
        max_new_tokens=32,
        threshold=0.10,
        preset="high-resolution",
        summarise=_cycle_means,
        settings={"split": size},
    )


def _sample(row: Row) -> Sample:
    options = given_options(row)
    listed = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    return Sample(
        id=entry(row, "index"),
        open_picture=row["open_picture"],
        question=f"{entry(row, 'question').strip()}\n{listed}{INSTRUCTION}",
        answers=(entry(row, "answer").strip().upper(),),
        category=entry(row, "category"),
        details={"cycle": entry(row, "cycle_category"), **options},
    )


def _score(answer: str, sample: Sample) -> float:
    options = {letter: sample.details[letter] for letter in OPTION_LETTERS if letter in sample.details}
    return float(matching_option(answer, options) == sample.answers[0])


def _cycle_means(records: Sequence[Record]) -> dict[str, float]:
    """lmms-eval's figures: the mean over option orders of the mean of each, for all questions and by category."""
    figures = {"average": _mean_of_means(records)}
    for category in dict.fromkeys(record.category for record in records):
        figures[category] = _mean_of_means([record for record in records if record.category == category])
    return figures


def _mean_of_means(records: Sequence[Record]) -> float:
    cycles: dict[str, list[float]] = {}
    for record in records:
        cycles.setdefault(record.details["cycle"], []).append(record.score or 0.0)
    return fmean(fmean(scores) for scores in cycles.values())
