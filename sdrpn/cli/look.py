"""`sdrpn look`: where questions point, on pictures, videos and cameras."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.requests import session_fields
from sdrpn.errors import BadInput
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.look_arguments import add_look_arguments, add_region_arguments
from sdrpn.terminal.model_folders import add_bundle_argument
from sdrpn.terminal.session_arguments import add_where
from sdrpn.terminal.source_arguments import add_frame_options, read_options

if TYPE_CHECKING:
    from sdrpn.workflows.look import LookRequest, LookStream
    from sdrpn.workflows.look_folder import LookFolder

HELP = "find the regions that questions are about, on pictures, videos and cameras"
DESCRIPTION = """\
Find the regions that questions are about, without answering: on a picture, a folder, a pattern, a list of files (.txt),
a video, a camera (0, /dev/video0), the URL of a stream, or the picture on standard input (-).

  sdrpn look bundle street.jpg "the sign" "the door" --out looked-at
  sdrpn look bundle 0 "the red cup" --jsonl --max-fps 10
  sdrpn look bundle 'shots/*.jpg' "the label" --save-crops
  sdrpn look bundle rtsp://camera/one --source rtsp://camera/two "a person at the gate" --save-video

Frames of cameras and streams are dropped while the model looks, so that it always looks at the newest; those of files
are not. A camera or stream that breaks off is opened again. Ctrl-C ends it with a summary.
"""
# Where numbered folders are made.
RUNS = Path("runs") / "look"
_MOST_RENAMED = 8  # lines of the summary; every line of looks.jsonl has the name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    parser.add_argument("source", metavar="SOURCE", help="where frames come from; a file that is named 0 is ./0")
    parser.add_argument(
        "questions", metavar="QUESTION", nargs="+", help="what to look for, each in quotes; all on every frame"
    )
    add_frame_options(parser.add_argument_group("which frames"))
    _add_region(parser.add_argument_group("where it looks"))
    _add_output(parser.add_argument_group("what it prints and writes"))
    add_where(parser.add_argument_group("where it runs"), jpeg=False)


def _add_region(group: argparse._ArgumentGroup) -> None:
    add_region_arguments(group)
    add_look_arguments(group)
    group.add_argument(
        "--track",
        action="store_true",
        help="average maps over frames and let regions go later than they come, so that boxes do not flicker",
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--jsonl", action="store_true", help="print a line of JSON per frame")
    group.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help=f"write looks.jsonl and what is saved to this new folder (default: {RUNS}/1, 2, ... where something is "
        "saved); alone it saves overlays",
    )
    group.add_argument("--save", action="store_true", help="save every frame with its boxes drawn")
    group.add_argument("--save-crops", action="store_true", help="save every region, at full resolution")
    group.add_argument("--save-video", action="store_true", help="save a video with boxes drawn, one per source")


def run(args: argparse.Namespace) -> int:
    """Look at every frame, print and write what was found, and end with a summary."""
    from sdrpn.terminal.output import remark, warn
    from sdrpn.workflows.look import look_stream
    from sdrpn.workflows.look_text import stream_text
    from sdrpn.workflows.question import silence_onnxruntime

    _check_questions(args)
    request = _request(args)
    folder = _output_folder(args)
    if not args.debug:
        silence_onnxruntime()
    ended: BaseException | None = None
    with look_stream(request, note=warn) as stream:
        with ExitStack() as writing:
            if folder is not None:
                writing.enter_context(folder)
                folder.name_sources(stream.sources)
            try:
                _look(args, stream, folder)
            except (KeyboardInterrupt, SystemExit) as signal:  # what is written so far is completed first
                ended = signal
        figures = stream.figures
    remark(stream_text(figures))
    if folder is not None and folder.folder.exists():
        remark(f"written: {folder.folder}")
        for source, name in islice(folder.renamed.items(), _MOST_RENAMED):
            remark(f"{name} there is {source}")
    if ended is not None:
        raise ended
    return 1 if figures.given_up or figures.unreadable or figures.broken else 0


def _look(args: argparse.Namespace, stream: LookStream, folder: LookFolder | None) -> None:
    from sdrpn.terminal.output import print_json_line, print_piece
    from sdrpn.terminal.progress import status
    from sdrpn.workflows.look_text import frame_lines, stream_text

    with status() as show:
        for number, found in enumerate(stream, start=1):
            if args.jsonl:
                print_json_line(found.to_dict() if folder is None else folder.record(found))
            else:
                print_piece("".join(f"{line}\n" for line in frame_lines(found)))
            if folder is not None:
                folder.add(found)
            show(lambda: stream_text(stream.figures))
            if number == args.frames:
                return


def _check_questions(args: argparse.Namespace) -> None:
    from sdrpn.terminal.output import warn

    for question in args.questions:
        if _is_file(question):
            raise BadInput(
                f"the question {question!r} is the name of a file; put a pattern in quotes ('*.jpg'), so that the "
                "shell leaves it alone, or name further sources with --source"
            )
    if len(args.questions) > 1 and not any(" " in question.strip() for question in args.questions):
        warn(f"{len(args.questions)} questions of one word each; a question of several words is put in quotes")


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a text that is no name
        return False


def _request(args: argparse.Namespace) -> LookRequest:
    from sdrpn.method.policy import RoiChange
    from sdrpn.workflows.look import LookRequest

    return filled(
        LookRequest,
        args,
        sources=(args.source, *args.more_sources),
        questions=tuple(args.questions),
        roi=filled(RoiChange, args),
        read=read_options(args),
        **session_fields(args),
    )


def _output_folder(args: argparse.Namespace) -> LookFolder | None:
    from sdrpn.terminal.output_file import require_output_folder
    from sdrpn.workflows.look_folder import LookFolder, Saved, numbered_folder

    saved = Saved(args.save, args.save_crops, args.save_video)
    if args.out is None and saved == Saved():
        return None
    require_output_folder("--out", args.out)
    if args.out is not None and saved == Saved():
        saved = Saved(overlays=True)
    return LookFolder(args.out or numbered_folder(RUNS), saved)
