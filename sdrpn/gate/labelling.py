"""From questions to a folder of gate labels: answers at every view, shard by shard, then what they say.

A folder has

    run.json               the settings, model and data of the run; only a run with the same settings is resumed
    answers/part-*.parquet the answers at every view, with the prompt's tokens and the grids; nothing is judged yet
    gate.json              run.json with counts; written last
    report.html            for inspection
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadImage, BadInput, ContextTooLong
from sdrpn.families.registry import seen_of
from sdrpn.gate.rule import CASES, Case, GateRule, Judged, judge
from sdrpn.host.part import WHOLE, Part
from sdrpn.host.progress import Advance, unseen
from sdrpn.labels.questions import DataQuestion, questions_provenance
from sdrpn.labels.run_folder import fill_folder, write_json
from sdrpn.labels.shards import read_shards

if TYPE_CHECKING:  # it imports PyTorch
    from sdrpn.gate.views import Viewer

__all__ = [
    "ANSWERS",
    "ANSWER_COLUMNS",
    "GATE_NAME",
    "GateCounts",
    "GateLabelRun",
    "judged_rows",
    "label_for_gate",
    "what_lacks",
]

FORMAT_VERSION = 1
ANSWERS, GATE_NAME = "answers", "gate.json"
ANSWER_COLUMNS = {
    "id": "string",
    "image": "string",
    "question": "string",
    "truth": "string",  # null where the data has no answer
    "ids_before": "ids",  # the prompt's tokens before and after the image
    "ids_after": "ids",
    "grids": "ids",  # h and w of the image's grid at every view, one after another
    "answers": "texts",  # one per view; null where the question could not be asked
    "problem": "string",  # why it could not; null if it was
}


@dataclass(frozen=True)
class GateCounts:
    """The outcomes of all questions, by case, and how many are right at each view."""

    cases: Mapping[Case, int]
    not_asked: int
    right: tuple[int, ...]

    @property
    def lacking(self) -> str | None:
        """Why no gate can be trained on them, and what to do; None: one can."""
        return what_lacks({case for case, count in self.cases.items() if count})

    @property
    def balanced(self) -> int:
        """The questions of a balanced set: all that need another look, and as many that do not."""
        return 2 * min(self.cases["enough"], self.cases["again"])


@dataclass(frozen=True)
class GateLabelRun:
    """The inputs of a folder of gate labels."""

    checkpoint_sha256: str
    questions: tuple[DataQuestion, ...]
    rule: GateRule
    shard_questions: int = 256

    def provenance(self, viewer: Viewer) -> dict[str, Any]:
        """Everything that determines the labels."""
        return {
            "format_version": FORMAT_VERSION,
            "checkpoint_sha256": self.checkpoint_sha256,
            "precision": str(viewer.model.embed.weight.dtype).removeprefix("torch."),
            "fit": seen_of(viewer.model.spec),
            "views": list(viewer.views),
            "policy": {key: value for key, value in vars(viewer.policy).items() if key != "gate_threshold"},
            "max_new_tokens": viewer.max_new_tokens,
            **questions_provenance(self.questions),
            "rule": dataclasses.asdict(self.rule),
            "shard_questions": self.shard_questions,
        }


def label_for_gate(
    run: GateLabelRun,
    viewer: Viewer,
    out: Path,
    *,
    resume: bool = False,
    part: Part = WHOLE,
    progress: Advance = unseen,
    finish: Callable[[GateCounts], object] = lambda counts: None,
) -> GateCounts | None:
    """Ask every question at every view and write `out`: a new or empty folder, or with `resume` that of this run.

    Args:
        part: which files are written here; the last of several processes, which share the folder, counts
        finish: called once, by the process that counts
    Returns: None while files of other parts are missing
    Raises: BadInput for a folder with other content, or a question without a true answer that the rule needs
    """
    if run.rule.target == "truth":
        lacking = next((question.id for question in run.questions if question.answer is None), None)
        if lacking is not None:
            raise BadInput(
                f"question {lacking} has no answer to compare with; add one to each line, or agree with the highest "
                "view instead",
                options=("agree_with highest",),
            )
    provenance = run.provenance(viewer)

    def rest() -> dict[str, Any]:
        counts = counted(judged_rows(out, run.rule), len(viewer.views))
        about = {**provenance, "images": str(viewer.images.resolve()), "counts": dataclasses.asdict(counts)}
        write_json(out / GATE_NAME, about)
        finish(counts)
        return about

    about = fill_folder(
        out,
        ANSWERS,
        ANSWER_COLUMNS,
        provenance,
        run.questions,
        lambda questions: _rows(viewer, questions),
        GATE_NAME,
        rest,
        per_file=run.shard_questions,
        at_once=viewer.batch,
        resume=resume,
        part=part,
        progress=progress,
    )
    if about is None:
        return None
    found = about["counts"]
    return GateCounts(found["cases"], found["not_asked"], tuple(found["right"]))


def what_lacks(cases: Collection[Case]) -> str | None:
    """Why no gate can be trained on questions of these cases, and what to do; None: one can."""
    for case, meaning, advice in (
        ("again", "need another look", "ask about smaller details, or begin with a lower view"),
        ("enough", "are right at every view", "ask simpler ones, or begin with a higher view"),
    ):
        if case not in cases:
            return f"no questions that {meaning}, so that a gate would learn one answer for all: {advice}"
    return None


def judged_rows(folder: Path, rule: GateRule) -> Iterable[tuple[dict[str, Any], Judged | None]]:
    """Every row of a folder, in order, and what its answers say; None where the question could not be asked."""
    for row in read_shards(folder / ANSWERS, ANSWER_COLUMNS):
        answers = row["answers"]
        yield row, None if answers is None else judge(answers, row["truth"], rule)


def counted(rows: Iterable[tuple[dict[str, Any], Judged | None]], views: int) -> GateCounts:
    """How many questions there are of each case."""
    cases, right, not_asked = Counter[Case](dict.fromkeys(CASES, 0)), [0] * views, 0
    for _, judged in rows:
        if judged is None:
            not_asked += 1
            continue
        cases[judged.case] += 1
        right = [count + found for count, found in zip(right, judged.right, strict=True)]
    return GateCounts(dict(cases), not_asked, tuple(right))


def _rows(viewer: Viewer, questions: Sequence[DataQuestion]) -> list[dict[str, Any]]:
    found = viewer.answers_to(questions)
    return [_row(viewer, question, answers) for question, answers in zip(questions, found, strict=True)]


def _row(viewer: Viewer, question: DataQuestion, answers: list[str] | BadImage | ContextTooLong) -> dict[str, Any]:
    prompt = viewer.prompt(question)
    row: dict[str, Any] = {
        "id": question.id,
        "image": question.image,
        "question": question.text,
        "truth": question.answer,
        "ids_before": prompt.ids_before,
        "ids_after": prompt.ids_after,
        "grids": [],
        "answers": None,
        "problem": None,
    }
    if not isinstance(answers, list):  # one bad picture among many must not stop the run
        return row | {"problem": str(answers)}
    return row | {"grids": [side for hw in viewer.grids(question) for side in hw], "answers": answers}
