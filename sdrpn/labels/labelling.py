"""From questions to a label folder: record attention shard by shard, then label everything at once.

A label folder has

    run.json                the settings, model and data of the run; only a run with the same settings is resumed
    attention/part-*.parquet  the recorded attention to every cell, before any cleaning
    labels/part-*.parquet   the training data of an RPN: prompt tokens and cell labels, no answers and no boxes
    labels.json             run.json with counts; written last
    report.html, samples/, samples.png  for inspection
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdrpn.errors import BadImage, BadInput, ContextTooLong, RunFailed
from sdrpn.families.registry import family_of
from sdrpn.host.atomic import replacing_directory
from sdrpn.host.json_files import read_json_object
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.progress import Advance, unseen
from sdrpn.images.square import cells_of_square
from sdrpn.labels.denoise import FOREGROUND, LabelRule, PseudoLabels, Sinks, denoise, sinks_by_grid, sinks_on
from sdrpn.labels.head_choice import Head, HeadChoice, by_layer
from sdrpn.labels.questions import DataQuestion, questions_provenance
from sdrpn.labels.run_folder import RUN_NAME, fill_folder, write_json
from sdrpn.labels.shards import (
    ATTENTION_COLUMNS,
    LABEL_COLUMNS,
    grid_hw,
    read_shard,
    read_shards,
    write_shard,
)

__all__ = ["LABELS", "LABELS_NAME", "Counts", "LabelRun", "label_attention", "label_questions", "relabel"]

if TYPE_CHECKING:  # they import PyTorch, which `sdrpn relabel` does not need
    from sdrpn.labels.attention import WatchedAnswer
    from sdrpn.labels.teacher import Teacher

Floats = NDArray[np.float32]

FORMAT_VERSION = 1
LABELS_NAME = "labels.json"
ATTENTION, LABELS = "attention", "labels"
BATCHES_AHEAD = 4  # whose pictures are encoded together, so that questions of similar length can be batched
EARLIER_SINK_LIMIT = 1e-3  # of folders of older releases, which do not say it


@dataclass(frozen=True)
class Counts:
    """The outcomes of all questions; only the first kind is used in training."""

    labelled: int = 0
    oversize: int = 0  # the foreground's box covers half of the grid
    no_foreground: int = 0
    no_answer: int = 0  # the answer is empty: there is no row to take attention from
    not_asked: int = 0  # an unreadable image, or a prompt that is too long
    foreground_cells: int = 0
    background_cells: int = 0


@dataclass(frozen=True)
class LabelRun:
    """The inputs of a label folder.

    image_tokens: least and most of a picture, where they are not the checkpoint's own
    batch: questions that are answered at once; the labels do not depend on it
    """

    checkpoint_sha256: str
    questions: tuple[DataQuestion, ...]
    heads: HeadChoice
    rule: LabelRule = dataclasses.field(default_factory=LabelRule)
    shard_questions: int = 256
    image_tokens: tuple[int, int] | None = None
    batch: int = 1

    def provenance(self, teacher: Teacher) -> dict[str, Any]:
        """Everything that determines the labels."""
        return {
            "format_version": FORMAT_VERSION,
            "checkpoint_sha256": self.checkpoint_sha256,
            "precision": str(teacher.model.embed.weight.dtype).removeprefix("torch."),
            "fit": teacher.seen,
            **questions_provenance(self.questions),
            **teacher.options.to_json(),
            "grounding_heads": [list(head) for head in self.heads.grounding],
            "sink_heads": [list(head) for head in self.heads.sinks],
            **({} if self.heads.usual_sinks or self.heads.sinks else {"usual_sinks": False}),
            "sink_limit": family_of(teacher.model.spec).label_sink_limit,
            "rule": self.rule.to_json(),
            "shard_questions": self.shard_questions,
            **({} if self.image_tokens is None else {"image_tokens": list(self.image_tokens)}),
        }


def label_questions(
    run: LabelRun,
    teacher: Teacher,
    out: Path,
    *,
    resume: bool = False,
    part: Part = WHOLE,
    progress: Advance = unseen,
    finish: Callable[[Counts], object] = lambda counts: None,
) -> Counts | None:
    """Record attention, label, and write everything to `out`: a new or empty folder, or with `resume` that of this run.

    Args:
        part: which files are recorded here; the last of several processes, which share the folder, labels
        finish: called once, by the process that labels
    Returns: None while files of other parts are missing
    Raises: BadInput for a folder with other content
    """
    teacher.require_askable(run.questions, by_layer((*run.heads.grounding, *run.heads.sinks)))
    provenance = run.provenance(teacher)

    def rest() -> dict[str, Any]:
        counts = label_attention(out, run.rule, provenance, teacher.images)
        finish(counts)
        return {"counts": dataclasses.asdict(counts)}

    about = fill_folder(
        out,
        ATTENTION,
        ATTENTION_COLUMNS,
        provenance,
        run.questions,
        lambda questions: _attention_rows(teacher, questions, run),
        LABELS_NAME,
        rest,
        per_file=run.shard_questions,
        at_once=BATCHES_AHEAD * run.batch,
        resume=resume,
        part=part,
        progress=progress,
    )
    return None if about is None else Counts(**about["counts"])


def label_attention(out: Path, rule: LabelRule, provenance: dict[str, Any], images: Path) -> Counts:
    """Label the recorded attention; existing labels are replaced. `images` is stored for the training."""
    sinks = _usual_sinks(out / ATTENTION, provenance)
    counts = Counts()
    with replacing_directory(out / LABELS, exist_ok=True) as folder:
        for path in sorted((out / ATTENTION).glob("part-*.parquet")):
            rows = []
            for row in read_shard(path, ATTENTION_COLUMNS):
                labels = _labels(row, sinks, rule, provenance)
                counts = _counted(counts, row, labels)
                if labels is not None and labels.usable:
                    found = {"cells": labels.cells.ravel().tolist(), "grid_hw": labels.cells.shape}
                    rows.append({**{key: row.get(key) for key in LABEL_COLUMNS}, **found})
            write_shard(folder / path.name, LABEL_COLUMNS, rows, provenance)
    about = {**provenance, "images": str(images.resolve()), "counts": dataclasses.asdict(counts)}
    write_json(out / LABELS_NAME, about)
    return counts


def relabel(source: Path, out: Path, rule: LabelRule) -> Counts:
    """Label the recorded attention of another folder with another rule, into a new folder; runs no model.

    Raises BadInput where `source` is not a complete label folder, or `out` is in use.
    """
    if not (source / LABELS_NAME).is_file():
        raise BadInput(f"{source} holds no {LABELS_NAME}; expected a folder that `sdrpn label` completed")
    about = read_json_object(source / LABELS_NAME, "label again")
    images = about.pop("images", None)
    if not isinstance(images, str):
        raise BadInput(f"{source / LABELS_NAME} has the images {images!r}; expected the name of a folder: label again")
    provenance = {**about, "rule": rule.to_json()}
    provenance.pop("counts", None)
    with replacing_directory(out) as folder:
        write_json(folder / RUN_NAME, provenance)
        shutil.copytree(source / ATTENTION, folder / ATTENTION)
        return label_attention(folder, rule, provenance, Path(images))


def _attention_rows(teacher: Teacher, questions: Sequence[DataQuestion], run: LabelRun) -> list[dict[str, Any]]:
    """Some batches of questions."""
    heads = run.heads
    watched = teacher.watch_all(questions, by_layer((*heads.grounding, *heads.sinks)), run.batch)
    return [_attention_row(teacher, question, heads, found) for question, found in zip(questions, watched, strict=True)]


def _attention_row(
    teacher: Teacher, question: DataQuestion, heads: HeadChoice, watched: WatchedAnswer | BadImage | ContextTooLong
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": question.id, "image": question.image, "question": question.text}
    prompt = teacher.prompt(question)
    row |= {"ids_before": prompt.ids_before, "ids_after": prompt.ids_after}
    if not isinstance(watched, BadImage):
        row |= {"grid_hw": teacher.grid(question).hw, "image_wh": teacher.image_wh(question)}
    if isinstance(watched, (BadImage, ContextTooLong)):
        return row | {"problem": str(watched)}
    own = teacher.options.answers == "own"
    row |= {"answer": teacher.text(watched.token_ids) if own else None, "answer_tokens": watched.row_count}
    row["grounding"] = _mean_of(watched, heads, heads.grounding)
    row["sinks"] = _mean_of(watched, heads, heads.sinks) if heads.sinks else None
    return row


def _mean_of(watched: WatchedAnswer, choice: HeadChoice, heads: Sequence[Head]) -> Floats:
    """Attention (C,), mean over some of the recorded heads."""
    places = by_layer((*choice.grounding, *choice.sinks))
    rows = [watched.attention[layer][places[layer].index(head)] for layer, head in heads]
    mean: Floats = np.mean(rows, axis=0, dtype=np.float32)
    if not np.isfinite(mean).all():
        raise RunFailed(
            "attention is not a finite number: the model overflowed; use a precision of a wider range",
            options=("precision bf16", "precision fp32"),
        )
    return mean


def _usual_sinks(folder: Path, provenance: dict[str, Any]) -> Sinks:
    """The sinks of the whole data set; none where sink heads were recorded, or nothing was, or none are wanted."""
    if not provenance.get("usual_sinks", True):
        return {}
    rows = (
        row for row in read_shards(folder, ATTENTION_COLUMNS) if row["grounding"] is not None and row["answer_tokens"]
    )
    return sinks_by_grid(
        (grid_hw(row, provenance), np.array(row["grounding"], np.float32)) for row in rows if row["sinks"] is None
    )


def _labels(row: dict[str, Any], usual: Sinks, rule: LabelRule, provenance: dict[str, Any]) -> PseudoLabels | None:
    if row["grounding"] is None or not row["answer_tokens"]:
        return None
    grounding, hw = np.array(row["grounding"], np.float32), grid_hw(row, provenance)
    sinks = sinks_on(usual, hw)
    if row["sinks"] is not None:
        limit = rule.sink_limit or provenance.get("sink_limit", EARLIER_SINK_LIMIT)
        sinks = np.array(row["sinks"], np.float32) >= limit
    padded = rule.padding_is_background and provenance.get("fit", "pad") == "pad"
    cells = cells_of_square(_image_wh(row), hw) if padded else None
    return denoise(grounding.reshape(hw), sinks.reshape(hw), rule, cells)


def _image_wh(row: dict[str, Any]) -> tuple[int, int]:
    width, height = row.get("image_wh") or (0, 0)
    if width < 1 or height < 1:
        raise BadInput(
            f"the row {row['id']!r} does not say how large its picture is, which this rule needs: label again"
        )
    return width, height


def _counted(counts: Counts, row: dict[str, Any], labels: PseudoLabels | None) -> Counts:
    if labels is None:
        name = "not_asked" if row["problem"] is not None else "no_answer"
    elif labels.usable:
        foreground = int((labels.cells == FOREGROUND).sum())
        background = int((labels.cells == 0).sum())
        counts = dataclasses.replace(
            counts,
            foreground_cells=counts.foreground_cells + foreground,
            background_cells=counts.background_cells + background,
        )
        name = "labelled"
    else:
        name = "oversize" if labels.oversize else "no_foreground"
    return dataclasses.replace(counts, **{name: getattr(counts, name) + 1})
