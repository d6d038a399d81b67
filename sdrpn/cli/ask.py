"""`sdrpn ask`: one question about an image, or about every frame of a folder, a video or a camera."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.requests import session_fields
from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import non_negative_number, number_between, positive_int, whole_number
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.look_arguments import add_look_arguments, add_region_arguments
from sdrpn.terminal.model_folders import add_bundle_argument
from sdrpn.terminal.session_arguments import JPEG_MODES, add_where
from sdrpn.terminal.source_arguments import add_frame_options, read_options, require_no_frame_options

if TYPE_CHECKING:
    from sdrpn.workflows.ask_frames import AnswerFile
    from sdrpn.workflows.question import AskRequest, Roi, Sampling

# Options of the second look.
_OF_REGIONS = ("threshold", "upscale", "max_ratio", "max_share", "gate_threshold")
HELP = "ask a question about an image"
DESCRIPTION = """\
Ask a question about an image: look at the whole image once, find the region that the question is about, crop it from
the full resolution, and answer with the crop's tokens added.

  sdrpn ask bundle street.jpg "What does the sign say?" --overlay looked-at.png
  curl -s http://camera/still.jpg | sdrpn ask bundle - "Is the door open?"
  sdrpn ask bundle street.jpg -- "-- a question that begins with a dash"

It asks about every frame of a folder, a pattern ('shots/*.jpg'), a list (.txt), a video, a camera (0) or a URL:

  sdrpn ask bundle shots "What does the sign say?" --jsonl --out answers.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    parser.add_argument(
        "source",
        metavar="IMAGE",
        help="picture in any format that Pillow reads, or any source of `sdrpn look`; -: a picture on standard input",
    )
    parser.add_argument("question", metavar="QUESTION", help="what to ask, in quotes")
    add_where(parser.add_argument_group("where it runs"))
    _add_region(parser.add_argument_group("where it looks"))
    _add_answer(parser.add_argument_group("how it answers"))
    _add_output(parser.add_argument_group("what it prints"))
    add_frame_options(_add_answer_file(parser.add_argument_group("of several pictures")))


def _add_region(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--no-roi", action="store_true", help="no second look")
    add_region_arguments(group)
    add_look_arguments(group)
    group.add_argument(
        "--max-ratio",
        metavar="R",
        type=non_negative_number,
        help="with --upscale bbox: give a region at most R times as many tokens per side as it has cells (default: the "
        "model's own, which is usually no limit)",
    )


def _add_answer(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=64,
        help="maximum length of the answer, in tokens (default: 64)",
    )
    group.add_argument(
        "--temperature",
        metavar="X",
        type=non_negative_number,
        default=0.0,
        help="0: always the most likely token; higher: more varied (default: 0)",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=number_between(0, 1),
        help="with --temperature: sample from the most likely tokens that together have this probability (default: 1)",
    )
    group.add_argument(
        "--repetition-penalty",
        metavar="X",
        type=non_negative_number,
        help="make tokens that were said before less likely; 1: do not (default: as the checkpoint says, usually 1)",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=whole_number,
        help="with --temperature: seed of the sampling (default: 0)",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--overlay",
        metavar="OUT.png",
        type=Path,
        help="also draw the heat map and the boxes over the image, with the crop beside it, as PNG, JPEG or WebP",
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument("--stream", action="store_true", help="print the answer as it is generated")
    form.add_argument("--json", action="store_true", help="print answer, token ids, boxes and timings as JSON")
    form.add_argument("--jsonl", action="store_true", help="print a line of JSON per picture, of one or several")


def _add_answer_file(group: argparse._ArgumentGroup) -> argparse._ArgumentGroup:
    group.add_argument(
        "--out",
        metavar="FILE.jsonl",
        type=Path,
        help="also append each answer to this file; pictures that have one there are not asked about again",
    )
    return group


def run(args: argparse.Namespace) -> int:
    """Answer the question, print it, and draw where the model looked."""
    from sdrpn.terminal.output import print_json, print_piece, print_text
    from sdrpn.terminal.output_file import report_written, save_picture
    from sdrpn.workflows.question import ask_question, silence_onnxruntime

    if _is_several(args):
        return _ask_frames(args)
    require_no_frame_options(args)
    _check_overlay(args)
    request = _request(args)
    if not args.debug:
        silence_onnxruntime()
    asked = ask_question(request, piece=print_piece if args.stream else None, note=_warn)
    if args.json:
        print_json({**asked.to_json(), "overlay": args.overlay})
    elif args.stream:
        print_piece("\n")
    else:
        print_text(asked.answer.text)
    if args.overlay is not None:
        save_picture(asked.overlay(), args.overlay)  # after the answer, which is not lost if this fails
        if not args.json:
            report_written(args.overlay, asked.drawn)
    return 0


def _is_several(args: argparse.Namespace) -> bool:
    """Whether the source is more than a picture, or answers go where those of several do."""
    from sdrpn.frames.source import read_source

    if args.jsonl or args.out is not None or args.more_sources:
        return True
    return read_source(args.source).kind not in ("picture", "stdin") and not _is_numbered_file(args.source)


def _is_numbered_file(source: str) -> bool:
    """A file that is named like a camera has always been a picture here."""
    from sdrpn.frames.source import read_source

    return read_source(source).kind == "camera" and Path(source).is_file()


def _ask_frames(args: argparse.Namespace) -> int:
    """Ask about every frame; print and keep each answer as it is there."""
    from sdrpn.terminal.output import print_json_line, print_piece, remark
    from sdrpn.terminal.output_file import require_output_file
    from sdrpn.workflows.ask_frames import AnswerFile, FramesRequest, any_frame, ask_frames
    from sdrpn.workflows.question import silence_onnxruntime

    for option in ("overlay", "stream", "json"):
        if getattr(args, option):
            raise BadInput(f"--{option} goes with one picture; for several there are --jsonl and --out")
    if args.jpeg != JPEG_MODES[0]:
        raise BadInput(f"--jpeg {args.jpeg} goes with one picture; frames are decoded exactly: leave it out")
    request = FramesRequest(_request(args), read_options(args), tuple(args.more_sources))
    if not args.debug:
        silence_onnxruntime()
    with ExitStack() as resources:
        answers: AnswerFile | None = None
        if args.out is not None:
            require_output_file("--out", args.out, ())
            answers = resources.enter_context(AnswerFile(args.out, request))
        wanted = any_frame if answers is None else answers.lacks
        frames = resources.enter_context(closing(ask_frames(request, wanted=wanted, note=_warn)))
        count = 0
        try:
            for found in islice(frames, args.frames):
                if answers is not None:
                    answers.append(found)
                count += 1
                if args.jsonl:
                    print_json_line(found.to_dict())
                else:
                    print_piece(f"{found.frame.source} {found.frame.index}: {found.answer.text}\n")
        except (KeyboardInterrupt, SystemExit):
            remark(_summary(count, answers))
            raise
        if answers is not None and answers.skipped:
            remark(_summary(count, answers))
    return 0


def _summary(count: int, answers: AnswerFile | None) -> str:
    before = 0 if answers is None else answers.skipped
    return f"{count} answered" + (f", {before} already answered in {answers.path}" if answers and before else "")


def _warn(text: str) -> None:
    from sdrpn.terminal.output import warn
    from sdrpn.workflows.question import NO_RPN

    warn(f"{text} (use --no-roi to avoid this warning)" if text.endswith(NO_RPN) else text)


def _request(args: argparse.Namespace) -> AskRequest:
    from sdrpn.workflows.question import AskRequest

    return filled(
        AskRequest,
        args,
        sampling=_sampling(args),
        roi=_policy(args),
        image=_image_source(args.source),
        **session_fields(args),
    )


def _sampling(args: argparse.Namespace) -> Sampling:
    from sdrpn.workflows.question import Sampling

    top_p = 1.0 if args.top_p is None else args.top_p
    seed = 0 if args.seed is None and args.temperature > 0 else args.seed
    return Sampling(args.temperature, top_p, seed, args.repetition_penalty)


def _policy(args: argparse.Namespace) -> Roi:
    from sdrpn.workflows.question import RoiChange

    if args.no_roi:
        for name in _OF_REGIONS:
            if getattr(args, name) is not None:
                option = "--" + name.replace("_", "-")
                raise BadInput(f"{option} is for the second look, and --no-roi leaves that out; leave one of them out")
        return None

    if args.max_ratio is not None and args.upscale != "bbox":
        got = "none" if args.upscale is None else f"--upscale {args.upscale}"
        raise BadInput(f"--max-ratio {args.max_ratio:g} needs --upscale bbox; got {got}")
    return filled(RoiChange, args)


def _check_overlay(args: argparse.Namespace) -> None:
    from sdrpn.terminal.output_file import PICTURES, require_output_file

    if args.overlay is None:
        return
    require_output_file("--overlay", args.overlay, tuple(PICTURES))
    if args.overlay.exists() and Path(args.source).exists() and args.overlay.samefile(args.source):
        raise BadInput(f"--overlay {args.overlay} would replace the image that is asked about; name another file")


def _image_source(source: str) -> Path | str | bytes:
    """A file, the text of another source, or the bytes on standard input."""
    from sdrpn.frames.source import read_source
    from sdrpn.frames.standard_input import read_standard_input

    found = read_source(source)
    if found.kind == "stdin":
        return read_standard_input()
    return source if found.is_live and not _is_numbered_file(source) else Path(source)
