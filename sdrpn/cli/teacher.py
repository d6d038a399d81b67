"""What the verbs share that let a checkpoint answer questions in PyTorch: their arguments, and opening the model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import add_fit_argument, positive_int
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sdrpn.checkpoint import Checkpoint
    from sdrpn.labels.questions import Question
    from sdrpn.labels.teacher import Teacher

__all__ = [
    "add_checkpoint_arguments",
    "add_teacher_arguments",
    "device_named",
    "open_teacher",
    "some_questions",
    "tokenizer_of",
]


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, where it runs and in which precision."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder of the checkpoint")
    parser.add_argument("--vision-tower", metavar="DIR", type=Path, help="as for `sdrpn export`")
    parser.add_argument("--base", metavar="DIR", type=Path, help="as for `sdrpn export`")
    parser.add_argument("--projector", metavar="FILE", type=Path, help="as for `sdrpn export`")
    add_fit_argument(parser)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the model (default: fp32)"
    )
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cpu)")
    add_model_options(parser, "checkpoint", "base", "vision_tower")


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, its questions, and how it answers them."""
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="QA.jsonl",
        type=Path,
        required=True,
        help="one JSON object a line: image, question",
    )
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="folder of the images")
    parser.add_argument("--limit", metavar="N", type=positive_int, help="take the first N questions only")
    parser.add_argument(
        "--rows",
        choices=("answer", "predicting", "last-prompt"),
        default="answer",
        help="whose attention counts: the answer's tokens (as the official code), the tokens that they were predicted "
        "from, or the prompt's last token (default: answer)",
    )
    parser.add_argument(
        "--answers",
        choices=("own", "given"),
        default="own",
        help="own: the model answers itself; given: use the answers that stand in the data (default: own)",
    )
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=128, help="longest answer (default: 128)"
    )


@contextmanager
def open_teacher(args: argparse.Namespace) -> Iterator[tuple[Teacher, Checkpoint]]:
    """The model of `args`, ready to answer, and the checkpoint that it came from."""
    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.labels.teacher import Teacher, TeacherOptions
    from sdrpn.model import model_from_checkpoint
    from sdrpn.model.dtypes import torch_dtype

    device = device_named(args.device)
    options = TeacherOptions(args.rows, args.answers, args.max_new_tokens)
    dtype = torch_dtype(args.precision)
    with open_checkpoint(
        args.checkpoint, vision_tower=args.vision_tower, base=args.base, projector=args.projector, fit=args.fit
    ) as checkpoint:
        tokenizer = tokenizer_of(checkpoint)
        model = model_from_checkpoint(checkpoint, dtype).to(device)
        yield Teacher(model, tokenizer, args.images, options), checkpoint


def some_questions(args: argparse.Namespace) -> list[Question]:
    """The first `--limit` questions of `--data`."""
    from sdrpn.errors import BadInput
    from sdrpn.labels.questions import read_questions

    if not args.images.is_dir():
        raise BadInput(f"{args.images} is not a folder; expected the folder that holds the images")
    return read_questions(args.data)[: args.limit]


def device_named(name: str) -> str:
    """The name, if PyTorch has such a device here. Raises BadInput."""
    import torch

    from sdrpn.errors import BadInput

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"--device {name} cannot be used here ({reason}); use --device cpu") from error
    return name


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer as a bundle would have it."""
    from sdrpn.checkpoint.tokenizer import exported_tokenizer
    from sdrpn.errors import BadCheckpoint
    from sdrpn.text.tokenizer import load_tokenizer

    with exported_tokenizer(checkpoint) as path:
        if path is None:
            raise BadCheckpoint(f"{checkpoint.path} has no tokenizer; put its tokenizer.json or tokenizer.model there")
        return load_tokenizer(path)
