"""Arguments of the verbs that run a checkpoint in PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.terminal.argument_types import positive_int
from sdrpn.terminal.arguments import add_fit_argument, add_shard_argument, add_threads_argument
from sdrpn.terminal.look_arguments import add_image_tokens_argument
from sdrpn.terminal.model_folders import name_model_folders

__all__ = [
    "add_answer_length",
    "add_batch_argument",
    "add_checkpoint_argument",
    "add_checkpoint_arguments",
    "add_label_folder_arguments",
    "add_part_arguments",
    "add_question_arguments",
    "add_teacher_arguments",
]


# Option, metavar and help; other verbs than `sdrpn export` refer to that one.
_PARTS = (
    (
        "--vision-tower",
        "DIR",
        "CLIP vision tower of an original LLaVA checkpoint (default: as its config says, or from the local cache)",
    ),
    ("--rpn", "FILE", "rpn.safetensors, with rpn.json beside it, to use with this checkpoint"),
    (
        "--base",
        "DIR",
        "checkpoint that supplies what CHECKPOINT lacks: upper layers, or the whole model that a LoRA or a projector "
        "was trained on",
    ),
    (
        "--projector",
        "FILE",
        "mm_projector.bin as LLaVA saves it, or its folder, in place of CHECKPOINT's projector",
    ),
)


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint, with the parts that may be a folder of a model of their own."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder of the checkpoint")
    name_model_folders(parser, "checkpoint", "base", "vision_tower")


def add_part_arguments(
    group: argparse._ActionsContainer, text: str | None = "as for `sdrpn export`", *, with_rpn: bool = True
) -> None:
    """Declare parts that are not taken from the checkpoint's folder. Args: text: None: what each of them is"""
    for option, metavar, about in _PARTS:
        if with_rpn or option != "--rpn":
            group.add_argument(option, metavar=metavar, type=Path, help=text or about)


def add_checkpoint_arguments(parser: argparse.ArgumentParser, *, with_rpn: bool = True) -> None:
    """Declare the model, where it runs and in which precision."""
    add_checkpoint_argument(parser)
    add_part_arguments(parser, with_rpn=with_rpn)
    add_fit_argument(parser)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="precision of the model (default: fp32)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add_threads_argument(parser)


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, its questions, and how it answers them."""
    add_checkpoint_arguments(parser, with_rpn=False)
    add_question_arguments(parser)
    parser.add_argument(
        "--rows",
        choices=("answer", "predicting", "last-prompt"),
        default="answer",
        help="which attention counts: that of the answer's tokens (as in the official code), the tokens that they were "
        "predicted from, or the prompt's last token (default: answer)",
    )
    parser.add_argument(
        "--answers",
        choices=("own", "given"),
        default="own",
        help="own: the model answers itself; given: use the answers in the data (default: own)",
    )
    add_answer_length(parser, 128)
    add_batch_argument(parser)
    group = parser.add_argument_group("models that take pictures of any shape")
    add_image_tokens_argument(group)
    group.add_argument(
        "--shape",
        choices=("native", "square"),
        default="native",
        help="square: pictures are padded to squares first, as in the official trainings (default: native)",
    )
    group.add_argument(
        "--asking",
        choices=("plain", "short", "boxes"),
        default="plain",
        help="what follows a question: nothing; the request for a word or a phrase; or, for natural scenes, that "
        "for the boxes that the answer needs, while the prompts to train on have the short one (default: plain)",
    )


def add_label_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folder of labels that a verb writes, file by file."""
    parser.add_argument("--out", metavar="LABELS", type=Path, required=True, help="folder to write: new or empty")
    parser.add_argument("--resume", action="store_true", help="continue a run with the same settings in --out")
    add_shard_argument(parser)
    parser.add_argument(
        "--shard-questions", metavar="N", type=positive_int, default=256, help="questions per file (default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print what was made, and the counts, as JSON")


def add_batch_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how many questions are answered together."""
    parser.add_argument(
        "--batch",
        metavar="N",
        type=positive_int,
        default=1,
        help="questions that are answered at once: faster, with the same answers (default: 1)",
    )


def add_question_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the questions."""
    parser.add_argument("--data", metavar="QA.jsonl", type=Path, required=True, help="JSON Lines: image, question")
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="folder of the images")
    parser.add_argument("--limit", metavar="N", type=positive_int, help="take the first N questions only")


def add_answer_length(parser: argparse.ArgumentParser, default: int) -> None:
    """Declare how long an answer may be."""
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=default,
        help=f"maximum length of an answer, in tokens (default: {default})",
    )
