"""`sdrpn quantize`: what 8 and 4 bits cost, part by part.

The JSON form is an object: questions (how many), costs (a list of sdrpn.calibration.sensitivity.Cost: part, choice,
weights, roi_cosine, roi_cosine_min, box_iou, same_decision, same_answer), and worth_keeping (parts).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.cli.requests import checkpoint_parts
from sdrpn.terminal.argument_types import number_between, some_names
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.checkpoint_arguments import add_answer_length, add_checkpoint_arguments, add_question_arguments
from sdrpn.workflows.quantize import CHOICES

HELP = "measure what 8 and 4 bits cost, part by part"
DESCRIPTION = """\
Round one part of a checkpoint at a time (the vision tower, each layer of the LLM, the RPN, the head), leave the rest as
it is, and compare with the checkpoint itself: the RoI map's cosine, how far the boxes overlap, whether both crop or
neither does, and whether the answers are equal token by token. The last row rounds everything that `sdrpn export`
rounds by default. Recommends parts to --keep. Needs the [train] extra; runs in PyTorch.

  sdrpn quantize CHECKPOINT --data qa.jsonl --images images --limit 32 --report report
  sdrpn quantize CHECKPOINT --data qa.jsonl --images images --choices int4-b32-rtn,int4-b128-hqq --parts rpn,layers.0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_checkpoint_arguments(parser)
    add_question_arguments(parser)
    parser.add_argument(
        "--choices",
        metavar="A,B",
        type=some_names,
        default=CHOICES,
        help=f"ways to round: intBITS-bBLOCK-METHOD, as in the names of weight files (default: {','.join(CHOICES)})",
    )
    parser.add_argument(
        "--parts",
        metavar="A,B",
        type=some_names,
        help="which of vision, layers.N, rpn, lm_head to round (default: all)",
    )
    add_answer_length(parser, 32)
    parser.add_argument("--threshold", metavar="X", type=number_between(-1, 1), help="as for `sdrpn ask`")
    parser.add_argument("--upscale", choices=("mask", "bbox"), help="as for `sdrpn ask`")
    parser.add_argument(
        "--report", metavar="DIR", type=Path, help="also write sensitivity.json, .md and .png into this new folder"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from sdrpn.terminal.output import print_json, print_report, print_text
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.quantize import QuantizeRequest, measure_rounding
    from sdrpn.workflows.quantize_text import advice, costs_text

    require_output_folder("--report", args.report)
    found = measure_rounding(filled(QuantizeRequest, args, checkpoint=checkpoint_parts(args)), progress)
    if args.json:
        print_json({"questions": found.questions, "costs": found.costs, "worth_keeping": found.worth_keeping})
        return 0
    print_report(costs_text(found))
    if args.report is not None:
        report_written(args.report, "figures and a picture")
    print_text(advice(found))
    return 0
