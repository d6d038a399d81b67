"""Find the attention heads of a checkpoint that point at what a question is about, and where its RPN should tap.

The model is read once for both.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.errors import BadInput
from sdrpn.families.registry import family_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.accelerators import open_accelerator
from sdrpn.workflows.teacher import TeacherRequest
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.labels.head_choice import Head
    from sdrpn.labels.head_scores import HeadScores
    from sdrpn.labels.questions import DataQuestion
    from sdrpn.labels.teacher import Teacher
    from sdrpn.train.options import TrainOptions
    from sdrpn.train.proposal import Trial

__all__ = ["FoundHeads", "HeadsRequest", "Proposal", "ProposalRequest", "find_heads"]

_EXTRA = ("train", "sdrpn heads")
LABELS = "labels"  # folder of a proposal's labels
LARGEST_BATCH = 32  # with a few hundred questions, many small steps train better than few large ones
HELD_OUT = 0.2  # of the images: more than in a training whose result is kept


@dataclass(frozen=True)
class ProposalRequest(CheckedFields):
    """The trial trainings to compare.

    preset: of `sdrpn.train.options.preset_named`
    tap_layers: values of K to try; None: four around the middle
    rpn_layers: values of T to try
    steps: of each training
    """

    preset: str = "official"
    tap_layers: Sequence[int] | None = None
    rpn_layers: Sequence[int] = (1, 2, 3)
    steps: int = 100


@dataclass(frozen=True)
class HeadsRequest(CheckedFields):
    """Which model and questions to use, and what to find.

    count: number of heads to choose
    out: folder for heads.json and heads.png, and for labels and taps.png with a proposal; None: nothing is written
    proposal: None: no trial trainings
    """

    asked: TeacherRequest
    count: int = 3
    out: Path | None = None
    proposal: ProposalRequest | None = None


@dataclass(frozen=True)
class Proposal:
    """Where to tap (K) and how many layers the RPN should have (T), with all trial trainings."""

    tap_layer: int
    rpn_layers: int
    steps: int
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class FoundHeads:
    """Scores of every head, and the best of them.

    questions: number of answered questions
    details: further entries of heads.json
    """

    scores: HeadScores
    chosen: tuple[Head, ...]
    questions: int
    details: dict[str, Any]
    proposal: Proposal | None


def find_heads(request: HeadsRequest, progress: ShowProgress = show_nothing) -> FoundHeads:
    """Let a checkpoint answer questions, and score every head by how well it points; optionally propose K and T.

    Raises: BadInput and BadCheckpoint before the model answers, or if no image has two questions; MissingDependency
    """
    out, asked = request.out, request.asked
    if request.proposal is not None and out is None:
        raise BadInput("a proposal writes labels beside heads.json; name a folder", options=("out",))
    questions = asked.questions()
    asked.checkpoint.look(*_EXTRA)
    with importing_extra(*_EXTRA):
        import torch

        from sdrpn.labels.head_choice import HEADS_NAME, write_heads
        from sdrpn.labels.head_picture import draw_heads

    with asked.checkpoint.open() as checkpoint, torch_threads(asked.threads, asked.small_work_of(checkpoint)):
        pairs = [] if request.proposal is None else _pairs(request.proposal, checkpoint)
        teacher = asked.teacher(checkpoint)
        scores, answered = _scored(teacher, questions, asked.batch, progress)
        chosen = scores.best(request.count)
        details: dict[str, Any] = {
            "questions": answered,
            "rows": asked.rows,
            "answers": asked.answers,
            "scores": _rows(scores),
        }
        if out is not None:
            write_heads(out / HEADS_NAME, chosen, details)
            draw_heads(scores, chosen).save(out / "heads.png")
        if request.proposal is None or out is None:
            return FoundHeads(scores, chosen, answered, details, None)
        options = _trial_options(request.proposal, asked)
        with tempfile.TemporaryDirectory(dir=out, prefix=".taps-") as folder:
            _label(asked, teacher, checkpoint, questions, chosen, out / LABELS, progress)
            _store_taps(teacher, out / LABELS, options, pairs, Path(folder), progress)
            del teacher  # frees memory for the trainings
            torch.cuda.empty_cache()
            with torch_threads(asked.threads):
                proposal = _tried(request, checkpoint, out, options, pairs, Path(folder), progress)
    details["proposal"] = dataclasses.asdict(proposal)
    write_heads(out / HEADS_NAME, chosen, details)
    return FoundHeads(scores, chosen, answered, details, proposal)


# Heads ---------------------------------------------------------------------------------------------------------------


def _scored(
    teacher: Teacher, questions: Sequence[DataQuestion], batch: int, progress: ShowProgress
) -> tuple[HeadScores, int]:
    import numpy as np

    from sdrpn.labels.attention import all_heads
    from sdrpn.labels.head_scores import HeadScorer
    from sdrpn.labels.labelling import BATCHES_AHEAD

    scorer, answered = HeadScorer(), 0
    heads = all_heads(teacher.model.spec.llm)
    with progress("heads", "questions") as advance:
        # Only consecutive questions on one image are compared; the sort is stable.
        ordered = sorted(questions, key=lambda question: question.image)
        for first in range(0, len(ordered), BATCHES_AHEAD * batch):
            asked = ordered[first : first + BATCHES_AHEAD * batch]
            for question, watched in zip(asked, teacher.watch_all(asked, heads, batch), strict=True):
                if isinstance(watched, Exception):
                    raise watched
                if watched.row_count:
                    attention = np.stack([watched.attention[layer] for layer in heads])  # (L,H,h*w)
                    scorer.add(question.image, attention.reshape(*attention.shape[:2], *teacher.grid(question).hw))
                    answered += 1
            advance(first + len(asked), len(questions))
    return scorer.scores(), answered


def _rows(scores: HeadScores) -> list[dict[str, Any]]:
    import numpy as np

    return [
        {
            "layer": layer,
            "head": head,
            "frequency": float(scores.frequency[layer, head]),
            "image_share": float(scores.image_share[layer, head]),
            "entropy": float(scores.entropy[layer, head]) if np.isfinite(scores.entropy[layer, head]) else None,
            "dependence": float(scores.dependence[layer, head]),
        }
        for layer, head in np.ndindex(scores.frequency.shape)
    ]


# Tap and layers of the RPN -------------------------------------------------------------------------------------------


def _pairs(asked: ProposalRequest, checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """(K,T) of every training."""
    from sdrpn.train.options import require_preset_of
    from sdrpn.train.proposal import fitting_pairs, usual_tap_layers

    require_preset_of(checkpoint.spec, asked.preset)
    layers = checkpoint.spec.llm.layers
    taps = asked.tap_layers or usual_tap_layers(layers)
    return fitting_pairs(layers, [(tap, own) for tap in taps for own in asked.rpn_layers])


def _trial_options(asked: ProposalRequest, teacher: TeacherRequest) -> TrainOptions:
    from sdrpn.train.options import preset_named

    preset = preset_named(asked.preset)
    return dataclasses.replace(
        preset,
        batch=min(preset.batch, LARGEST_BATCH),
        steps=asked.steps,
        precision="fp32" if teacher.precision == "fp32" else "bf16",
        taps="bf16",
        validation_share=HELD_OUT,
    )


def _label(
    asked: TeacherRequest,
    teacher: Teacher,
    checkpoint: Checkpoint,
    questions: Sequence[DataQuestion],
    heads: tuple[Head, ...],
    out: Path,
    progress: ShowProgress,
) -> None:
    """Label with the chosen heads; a later call reuses the labels."""
    from sdrpn.labels import labelling
    from sdrpn.labels.denoise import rule_named
    from sdrpn.labels.head_choice import HeadChoice

    run = labelling.LabelRun(
        checkpoint.digest(),
        tuple(questions),
        HeadChoice("chosen", heads),
        rule_named(family_of(checkpoint.spec).label_rule),
        image_tokens=asked.image_tokens,
        batch=asked.batch,
    )
    with progress("label", "questions") as advance:
        labelling.label_questions(run, teacher, out, resume=True, progress=advance)


def _store_taps(
    teacher: Teacher,
    labels: Path,
    options: TrainOptions,
    pairs: Sequence[tuple[int, int]],
    folder: Path,
    progress: ShowProgress,
) -> None:
    from sdrpn.model.dtypes import torch_dtype
    from sdrpn.train.label_set import read_labels
    from sdrpn.train.proposal import store_trial_taps

    model = teacher.model.to(torch_dtype(options.precision))
    store_trial_taps(model, read_labels(labels), teacher.images, options, [tap for tap, _ in pairs], folder, progress)


def _tried(
    request: HeadsRequest,
    checkpoint: Checkpoint,
    out: Path,
    options: TrainOptions,
    pairs: Sequence[tuple[int, int]],
    folder: Path,
    progress: ShowProgress,
) -> Proposal:
    from sdrpn.train.board import draw_trials
    from sdrpn.train.label_set import read_labels
    from sdrpn.train.proposal import best_trial, try_taps

    accelerator = open_accelerator(request.asked.device)
    trials = try_taps(checkpoint, read_labels(out / LABELS), options, pairs, folder, accelerator, progress)
    best = best_trial(trials)
    draw_trials(out / "taps.png", trials, best)
    return Proposal(best.tap_layer, best.rpn_layers, options.steps or 0, tuple(trials))
