"""POPE (Li et al., 2023): is an object in the picture? Objects are chosen at random, by frequency, or adversarially."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from sdrpn.evaluation.files import Layout, Row, read_json_lines, read_parquet
from sdrpn.evaluation.records import Record
from sdrpn.evaluation.sample import Sample
from sdrpn.evaluation.scores import yes_no_figures, yes_no_match
from sdrpn.evaluation.task import Task
from sdrpn.evaluation.tasks.reading import SHORT_ANSWER, entry, read_rows

__all__ = ["pope_task"]

EXPECTED = (
    "coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json and val2014/, or test-*.parquet, "
    "or Full/adversarial-*.parquet and the others, or POPE.tsv"
)
PARTS = ("adversarial", "popular", "random")  # the splits of lmms-lab's configuration "Full"


def pope_task(folder: Path) -> Task:
    """The parts that exist, as categories. Raises BadInput."""
    layout = Layout("pope", folder, EXPECTED)
    return Task(
        name="pope",
        samples=_samples(layout),
        score=lambda answer, sample: yes_no_match(answer, sample.answers[0]),
        metric="accuracy",
        max_new_tokens=128,
        threshold=0.15,
        summarise=_figures,
    )


def _samples(layout: Layout) -> list[Sample]:
    table = layout.rows("test", table="POPE")
    if table is not None:
        where, rows = table
        return list(read_rows(where, _by_part(rows), partial(_sample, layout, None)))
    shards = {part: layout.shards(part, "Full") for part in PARTS}
    files = {part: read_parquet(paths) for part, paths in shards.items() if paths}
    if files:
        return [
            sample for part, rows in files.items() for sample in read_rows(layout.folder, rows, _reader(layout, part))
        ]
    layout.first("**/coco_pope_*.json")
    samples: list[Sample] = []
    for path in layout.every("**/coco_pope_*.json"):
        part = path.stem.removeprefix("coco_pope_")
        samples += read_rows(path, read_json_lines(path), _reader(layout, part))
    return samples


def _by_part(rows: Iterable[Row]) -> Iterator[Row]:
    """Expand questions that VLMEvalKit stores once for several parts ("popular,random"): each part counts them."""
    for row in rows:
        for part in str(row.get("category", "")).split(","):
            yield {**row, "category": part.strip()}


def _reader(layout: Layout, part: str) -> Callable[[Row], Sample]:
    return partial(_sample, layout, part)


def _sample(layout: Layout, part: str | None, row: Row) -> Sample:
    part = entry(row, "category") if part is None else part
    truth = entry(row, "label", "answer").strip().lower()
    if truth not in ("yes", "no"):
        raise ValueError(f"its answer is {truth!r}, expected yes or no")
    return Sample(
        id=f"{part}-{entry(row, 'question_id', 'index')}",
        open_picture=row.get("open_picture") or layout.picture(entry(row, "image"), "val2014", "images", "."),
        question=entry(row, "text", "question").strip() + SHORT_ANSWER,
        answers=(truth,),
        category=part,
    )


def _figures(records: Sequence[Record]) -> dict[str, float]:
    return yes_no_figures((record.answer, record.truths[0]) for record in records)
