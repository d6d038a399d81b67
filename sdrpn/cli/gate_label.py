"""`sdrpn gate-label`: a checkpoint's own answers become labels to train a gate on.

The JSON form is that of gate.json: what decides the labels, and `counts` of sdrpn.gate.labelling.GateCounts; with it
    truth_and_highest   questions by their cases by the true answers and by the best view; null without true answers
"""

from __future__ import annotations

import argparse

from sdrpn.cli.requests import checkpoint_parts
from sdrpn.terminal.arguments import filled, take_part
from sdrpn.terminal.checkpoint_arguments import (
    add_answer_length,
    add_batch_argument,
    add_checkpoint_arguments,
    add_label_folder_arguments,
    add_question_arguments,
)
from sdrpn.terminal.training_arguments import add_view_arguments

HELP = "turn a checkpoint's answers into labels to train a gate on"
DESCRIPTION = """\
Let a checkpoint answer questions at ascending views of each picture, and find which of them another look helps. A model
that sees squares of one size (LLaVA) answers with one look and with two; one whose pictures have any number of tokens
(Qwen) at the resolutions of --resolutions. A question is kept where the best views are right and every answer is right
from some view on. Writes a folder with the answers in Parquet shards, gate.json and report.html. An interrupted run
loses only the shard in progress; --resume continues from there. Needs the [train] extra.

  sdrpn gate-label my-llava --rpn rpn --data qa.jsonl --images images --out gate-labels
  sdrpn gate-label my-llava --rpn rpn --data qa.jsonl --images images --out gate-labels --agree-with highest
  sdrpn gate-label qwen --rpn rpn --data qa.jsonl --images images --out gate-labels --resolutions 128,256,512,1024
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_checkpoint_arguments(parser)
    add_question_arguments(parser)
    add_answer_length(parser, 128)
    add_batch_argument(parser)
    add_view_arguments(parser)
    add_label_folder_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Label, and print how many questions there are of each case."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.gate_label import GateLabelRequest, label_gate
    from sdrpn.workflows.gate_text import gate_labels_text
    from sdrpn.workflows.training_text import part_text

    require_output_folder("--out", args.out)
    take_part(args)
    labelled = label_gate(filled(GateLabelRequest, args, checkpoint=checkpoint_parts(args)), progress)
    if args.json:
        print_json(labelled.to_json())
    elif not labelled.is_complete:
        print_report([part_text(args.out, args.part)])
    else:
        print_report(gate_labels_text(labelled))
        useful = labelled.counts.lacking is None
        report_written(args.out, "gate labels, for `sdrpn train --gate`" if useful else "gate labels")
        report_written(labelled.page, "page to look at")
    labelled.require_trainable()
    return 0
