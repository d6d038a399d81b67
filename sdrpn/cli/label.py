"""`sdrpn label`: a checkpoint's own attention becomes labels to train an RPN on.

The JSON form is that of labels.json: what decides the labels, and `counts` of sdrpn.labels.labelling.Counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.cli.arguments import positive_int
from sdrpn.cli.teacher import add_teacher_arguments, open_teacher, some_questions

HELP = "turn a checkpoint's attention into labels to train an RPN on"
DESCRIPTION = """\
Let a checkpoint answer questions, gather the attention of its answers to the image at the grounding heads, and clean it
into labels: foreground, background, or ignored. Writes a folder with Parquet shards, labels.json and report.html.
An interrupted run loses the shard that it was at; --resume goes on from there. Needs the [train] extra.

  sdrpn label llava-v1.5-7b --data qa.jsonl --images images --heads official-7b --out labels --device cuda
  sdrpn label my-llava --data qa.jsonl --images images --heads heads/heads.json --out labels --resume
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_teacher_arguments(parser)
    parser.add_argument(
        "--heads",
        metavar="NAME",
        required=True,
        help="official-7b or official-13b (LLaVA-1.5), or heads.json of `sdrpn heads`",
    )
    parser.add_argument("--out", metavar="LABELS", type=Path, required=True, help="folder to write: new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with a run of the same settings in --out")
    parser.add_argument(
        "--shard-questions", metavar="N", type=positive_int, default=256, help="questions a file (default: 256)"
    )
    parser.add_argument("--json", action="store_true", help="print what was made, and the counts, as JSON")


def run(args: argparse.Namespace) -> int:
    """Label, and say how many samples there are."""
    import dataclasses

    from sdrpn.cli.first_look import look_at_checkpoint
    from sdrpn.cli.output import print_json, print_table
    from sdrpn.cli.output_file import report_written, require_output_folder
    from sdrpn.cli.progress import progress
    from sdrpn.host.libraries import importing_extra

    require_output_folder("--out", args.out)
    with importing_extra("train", "sdrpn label"):
        from sdrpn.labels.head_choice import read_heads
    heads, questions = read_heads(args.heads), some_questions(args)
    look_at_checkpoint(args, "train")
    with importing_extra("train", "sdrpn label"):
        import torch  # noqa: F401

        from sdrpn.labels.labelling import LabelRun, label_questions
        from sdrpn.labels.report import write_report

    with open_teacher(args) as (teacher, checkpoint), progress("label", "questions") as advance:
        made_of = LabelRun(checkpoint.digest(), tuple(questions), heads, shard_questions=args.shard_questions)
        counts = label_questions(made_of, teacher, args.out, resume=args.resume, progress=advance)
        provenance = made_of.provenance(teacher)
    write_report(args.out, args.images, counts, provenance)
    if args.json:
        print_json({**provenance, "images": args.images.resolve(), "counts": counts})
    else:
        rows = [(name.replace("_", " "), f"{value:,}") for name, value in dataclasses.asdict(counts).items()]
        print_table(("of the questions", "count"), rows, title=f"{args.out}: {len(questions):,} questions")
        report_written(args.out, "labels")
        report_written(args.out / "report.html", "page to look at")
    return 0
