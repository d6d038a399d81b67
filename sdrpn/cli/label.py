"""`sdrpn label`: a checkpoint's own attention becomes labels to train an RPN on.

The JSON form is that of labels.json: what decides the labels, and `counts` of sdrpn.labels.labelling.Counts; null where
--shard leaves files to other processes, the last of which labels all.
"""

from __future__ import annotations

import argparse

from sdrpn.cli.requests import teacher_request
from sdrpn.terminal.arguments import filled, take_part
from sdrpn.terminal.checkpoint_arguments import add_label_folder_arguments, add_teacher_arguments

HELP = "turn a checkpoint's attention into labels to train an RPN on"
DESCRIPTION = """\
Let a checkpoint answer questions, gather the attention of its answers to the image at the grounding heads, and clean it
into labels: foreground, background, or ignored. Writes a folder with Parquet shards, labels.json and report.html.
An interrupted run loses only the shard in progress; --resume continues from there. Needs the [train] extra.

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
        help="heads.json of `sdrpn heads`, or an official choice (docs/training.md); an unknown name lists them",
    )
    parser.add_argument(
        "--rule",
        choices=("sd-rpn", "sd-rpn-margin", "q-zoom"),
        help="how attention is cleaned (default: the usual rule of the model's family)",
    )
    add_label_folder_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Label, and print how many samples there are."""
    from sdrpn.terminal.output import print_json, print_report, warn
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.label import LabelRequest, label
    from sdrpn.workflows.training_text import labels_text, part_text

    require_output_folder("--out", args.out)
    take_part(args)
    labelled = label(filled(LabelRequest, args, asked=teacher_request(args)), progress)
    if args.json:
        print_json(labelled.to_json())
    elif not labelled.is_complete:
        print_report([part_text(args.out, args.part)])
    else:
        print_report(labels_text(labelled.counts, f"{args.out}: {labelled.provenance['questions']:,} questions"))
        report_written(args.out, "labels")
        report_written(labelled.page, "page to look at")
        if labelled.lacking is not None:
            warn(labelled.lacking)
    return 0
