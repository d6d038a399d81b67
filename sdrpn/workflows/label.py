"""Make labels to train an RPN on from a checkpoint's own attention, or again from stored attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.part import WHOLE, Part, part_from_text
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.teacher import ModelPrecision, TeacherRequest
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.labels.denoise import LabelRule
    from sdrpn.labels.labelling import Counts

__all__ = ["LabelRequest", "Labelled", "RelabelRequest", "label", "label_questions", "relabel_questions"]

_EXTRA = ("train", "sdrpn label")


@dataclass(frozen=True)
class LabelRequest(CheckedFields):
    """Which model and questions to use, and where labels are written.

    heads: the grounding heads: an official choice such as "official-7b", or the path of heads.json
    rule: how attention is cleaned: a name from `sdrpn.labels.denoise.RULES`; None: the usual one of the model's family
    out: folder to write: new or empty, or with `resume` the folder of a run with the same settings
    shard_questions: questions per file
    part: which files this process makes; the last of several, with the same `out`, makes the labels
    """

    asked: TeacherRequest
    heads: str
    out: Path
    resume: bool = False
    shard_questions: int = 256
    rule: str | None = None
    part: Part = WHOLE


@dataclass(frozen=True)
class RelabelRequest(CheckedFields):
    """New labels by another rule.

    labels: folder that `label_questions` wrote
    out: folder to write: new or empty
    rule: a name from `sdrpn.labels.denoise.RULES`; None: "sd-rpn"
    foreground_share: cells above this share of the strongest cell are foreground; None: as the rule says, as below
    background_share: cells below this share are background
    largest_box_share: samples whose box covers this share of the grid are left out
    raw: no sinks removed, nothing ignored
    """

    labels: Path
    out: Path
    foreground_share: float | None = None
    background_share: float | None = None
    largest_box_share: float | None = None
    raw: bool = False
    rule: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("background_share", "largest_box_share"):
            if self.raw and getattr(self, name) is not None:
                raise BadInput(
                    f"{name} is {getattr(self, name)}, and raw labels are what is above the foreground's share and "
                    "what is not; leave one of them out",
                    options=("raw", name),
                )


@dataclass(frozen=True)
class Labelled:
    """A folder of labels.

    counts: outcomes of the questions
    rule: how attention was cleaned
    provenance: everything that decides the labels, as in labels.json
    page: a report to look at
    is_complete: False while files of other parts are missing: nothing is counted and labelled yet
    """

    out: Path
    images: Path
    counts: Counts
    rule: LabelRule
    provenance: dict[str, Any]
    page: Path
    is_complete: bool = True

    @property
    def lacking(self) -> str | None:
        """Why no RPN can be trained on them, and what to do; None: one can, or files of other parts are missing."""
        if not self.is_complete or self.counts.labelled:
            return None
        found = {name: count for name, count in dataclasses.asdict(self.counts).items() if count}
        why = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.items())
        return (
            f"{self.out} has no usable label ({why or 'no question'}), so that no RPN can be trained on it: choose "
            "other heads with `sdrpn heads`, or another rule with `sdrpn relabel`"
        )

    def to_json(self) -> dict[str, Any]:
        """The result as `sdrpn label --json` prints it."""
        counts = self.counts if self.is_complete else None
        return {**self.provenance, "images": self.images, "counts": counts}


def label_questions(
    checkpoint: Path | str,
    data: Path | str,
    images: Path | str,
    out: Path | str,
    *,
    heads: str,
    limit: int | None = None,
    rows: Literal["answer", "predicting", "last-prompt"] = "answer",
    answers: Literal["own", "given"] = "own",
    max_new_tokens: int = 128,
    precision: ModelPrecision = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    vision_tower: Path | str | None = None,
    base: Path | str | None = None,
    projector: Path | str | None = None,
    fit: Literal["pad", "crop"] = "pad",
    shard_questions: int = 256,
    rule: str | None = None,
    image_tokens: tuple[int, int] | None = None,
    shape: Literal["native", "square"] = "native",
    asking: Literal["plain", "short", "boxes"] = "plain",
    batch: int = 1,
    resume: bool = False,
    shard: str | None = None,
    progress: ShowProgress = show_nothing,
) -> Labelled:
    """Let a checkpoint answer questions, and clean its attention to the image into labels to train an RPN on.

    Args:
        checkpoint, vision_tower, base, projector, fit: see `sdrpn.checkpoint.open_checkpoint`
        data: JSON Lines: image, question
        images: the folder of the images
        out: folder to write: Parquet shards, labels.json, report.html
        heads: an official choice such as "official-7b", or the path of heads.json
        limit, rows, answers, max_new_tokens, precision, device, threads, image_tokens, shape, asking, batch: see
            `TeacherRequest`
        shard_questions, rule, resume: see `LabelRequest`
        shard: "I/N": part I of N, as one of several processes with the same `out`; None: everything
        progress: (title, unit) -> a context manager that gives a function of (done, total)
    Raises: BadInput and BadCheckpoint before the model answers; MissingDependency without sdrpn[train]
    """
    parts = CheckpointParts(checkpoint, vision_tower=vision_tower, base=base, projector=projector, fit=fit)
    asked = TeacherRequest(
        parts,
        Path(data),
        Path(images),
        limit,
        rows,
        answers,
        max_new_tokens,
        precision,
        device,
        threads,
        image_tokens,
        shape,
        asking,
        batch,
    )
    part = WHOLE if shard is None else part_from_text(shard)
    return label(LabelRequest(asked, heads, Path(out), resume, shard_questions, rule, part), progress)


def label(request: LabelRequest, progress: ShowProgress = show_nothing) -> Labelled:
    """See `label_questions`."""
    with importing_extra(*_EXTRA):
        from sdrpn.labels.denoise import rule_named
        from sdrpn.labels.head_choice import read_heads, require_heads_of
    heads, questions = read_heads(request.heads), request.asked.questions()
    named = None if request.rule is None else rule_named(request.rule)
    request.asked.checkpoint.look(*_EXTRA)
    with importing_extra(*_EXTRA):
        import torch  # noqa: F401

        from sdrpn.labels.labelling import Counts, LabelRun
        from sdrpn.labels.labelling import label_questions as gather_labels
        from sdrpn.labels.report import REPORT, write_report

    out, images = request.out, request.asked.images
    with (
        request.asked.checkpoint.open() as checkpoint,
        torch_threads(request.asked.threads, request.asked.small_work_of(checkpoint)),
        progress("label", "questions") as advance,
    ):
        require_heads_of(checkpoint.spec, heads)
        teacher = request.asked.teacher(checkpoint)
        rule = named or rule_named(family_of(checkpoint.spec).label_rule)
        run = LabelRun(
            checkpoint.digest(),
            tuple(questions),
            heads,
            rule,
            request.shard_questions,
            request.asked.image_tokens,
            request.asked.batch,
        )
        provenance = run.provenance(teacher)
        counts = gather_labels(
            run,
            teacher,
            out,
            resume=request.resume,
            part=request.part,
            progress=advance,
            finish=lambda found: write_report(out, images, found, provenance),
        )
    found = Counts() if counts is None else counts
    return Labelled(out, images.resolve(), found, run.rule, provenance, out / REPORT, counts is not None)


def relabel_questions(request: RelabelRequest) -> Labelled:
    """Clean stored attention by another rule, into a new folder; no model runs.

    Raises: BadInput if `labels` is not a complete folder of labels, or `out` is in use; MissingDependency
    """
    from sdrpn.host.json_files import read_json_object

    with importing_extra("train", "sdrpn relabel"):
        from sdrpn.labels.denoise import rule_named
        from sdrpn.labels.labelling import LABELS_NAME, relabel
        from sdrpn.labels.report import REPORT, write_report

    out = request.out
    names = ("foreground_share", "background_share", "largest_box_share")
    shares = {name: value for name in names if (value := getattr(request, name)) is not None}
    rule = dataclasses.replace(rule_named(request.rule or "sd-rpn"), raw=request.raw, **shares)
    counts = relabel(request.labels, out, rule)
    about = read_json_object(out / LABELS_NAME, "label again")
    provenance = {key: value for key, value in about.items() if key not in ("images", "counts")}
    images = Path(about["images"])
    write_report(out, images, counts, provenance)
    return Labelled(out, images, counts, rule, provenance, out / REPORT)
