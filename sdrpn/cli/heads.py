"""`sdrpn heads`: which attention heads of a checkpoint point at what a question is about.

The JSON form (and heads.json) is an object with these entries:
    format_version  1
    grounding       chosen heads, best first: [layer, head]
    questions       how many were asked
    rows, answers   as on the command line
    proposal        with --propose: tap_layer, rpn_layers, steps, and trials (sdrpn.train.proposal.Trial)
    scores          every head: layer, head, frequency, image_share, entropy (null: never compared), dependence
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.cli.arguments import positive_int
from sdrpn.cli.teacher import add_teacher_arguments, open_teacher, some_questions

if TYPE_CHECKING:
    from sdrpn.labels.head_choice import Head
    from sdrpn.labels.head_scores import HeadScores

HELP = "find the attention heads that point at what a question is about"
DESCRIPTION = """\
Let a checkpoint answer questions, and score every attention head by its share on the image, by how compact that share
is, and by how much it follows the question. The heads that are most often in a question's top ten become labels with
`sdrpn label --heads`. Give 500 questions or more, with two or more on some images. Needs the [train] extra.
With --propose the same questions are labelled by the chosen heads, and short trainings, scored on labels that were held
out, propose where `sdrpn train` should tap the LLM (K) and how many layers the RPN should have (T).

  sdrpn heads llava-v1.5-7b --data qa.jsonl --images images --out heads --limit 500 --device cuda --precision bf16
  sdrpn heads my-llava --data qa.jsonl --images images --out heads --propose --trial-steps 200
"""

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_teacher_arguments(parser)
    parser.add_argument("--count", metavar="N", type=positive_int, default=3, help="heads to choose (default: 3)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder to write heads.json and heads.png to")
    parser.add_argument(
        "--propose",
        nargs="?",
        const="official",
        choices=("official", "tiny"),
        help="also propose K and T, training with the numbers of this preset of `sdrpn train` (default: official)",
    )
    parser.add_argument(
        "--tap-layers", metavar="K", type=positive_int, nargs="+", help="to try (default: four around the middle)"
    )
    parser.add_argument(
        "--rpn-layers", metavar="T", type=positive_int, nargs="+", default=[1, 2, 3], help="to try (default: 1 2 3)"
    )
    parser.add_argument(
        "--trial-steps", metavar="N", type=positive_int, default=100, help="steps of each training (default: 100)"
    )
    parser.add_argument("--json", action="store_true", help="print the scores of every head as JSON")


def run(args: argparse.Namespace) -> int:
    """Score all heads, print the best, and write what `sdrpn label` reads."""
    from sdrpn.cli.first_look import look_at_checkpoint
    from sdrpn.cli.output import print_json
    from sdrpn.cli.output_file import report_written, require_output_folder
    from sdrpn.cli.proposal import print_proposal, proposed
    from sdrpn.errors import BadInput
    from sdrpn.host.libraries import importing_extra

    require_output_folder("--out", args.out)
    if args.propose and args.out is None:
        raise BadInput("--propose keeps labels beside heads.json; name a folder with --out")
    some_questions(args)
    look_at_checkpoint(args, "train")
    with importing_extra("train", "sdrpn heads"):
        import torch  # noqa: F401

        from sdrpn.labels.head_choice import HEADS_NAME, write_heads
        from sdrpn.labels.head_picture import draw_heads

    scores, questions = _scored(args)
    chosen = scores.best(args.count)
    details = {"questions": questions, "rows": args.rows, "answers": args.answers, "scores": _rows(scores)}
    if args.out is not None:
        write_heads(args.out / HEADS_NAME, chosen, details)
        draw_heads(scores, chosen).save(args.out / "heads.png")
    if args.propose:
        details["proposal"] = proposed(args, chosen)
        write_heads(args.out / HEADS_NAME, chosen, details)
    if args.json:
        print_json({"format_version": 1, "grounding": [list(head) for head in chosen], **details})
        return 0
    _print_table(scores, chosen, questions)
    if args.out is not None:
        report_written(args.out, f"{HEADS_NAME} and heads.png")
    if args.propose:
        print_proposal(details["proposal"])
    return 0


def _scored(args: argparse.Namespace) -> tuple[HeadScores, int]:
    import numpy as np

    from sdrpn.cli.progress import progress
    from sdrpn.labels.attention import all_heads
    from sdrpn.labels.head_scores import HeadScorer

    # Only questions that follow each other are compared; sorting keeps the order of those on one image.
    questions = sorted(some_questions(args), key=lambda question: question.image)
    scorer, answered = HeadScorer(), 0
    with open_teacher(args) as (teacher, _), progress("heads", "questions") as advance:
        heads = all_heads(teacher.model.spec.llm)
        for done, question in enumerate(questions, start=1):
            watched = teacher.watch(question, heads)
            if watched.row_count:
                attention = np.stack([watched.attention[layer] for layer in heads])  # (L,H,h*w)
                scorer.add(question.image, attention.reshape(*attention.shape[:2], *teacher.grid(question).hw))
                answered += 1
            advance(done, len(questions))
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


def _print_table(scores: HeadScores, chosen: tuple[Head, ...], questions: int) -> None:
    from sdrpn.cli.output import print_table

    rows = [
        (
            f"{layer}.{head}",
            f"{scores.frequency[layer, head]:.0%}",
            f"{scores.image_share[layer, head]:.3f}",
            f"{scores.entropy[layer, head]:.2f}",
            f"{scores.dependence[layer, head]:.3f}",
            "yes" if (layer, head) in chosen else "",
        )
        for layer, head in scores.best(SHOWN)
    ]
    columns = ("layer.head", "in top ten", "on image", "entropy", "follows question", "chosen")
    print_table(columns, rows, title=f"{questions} questions")
