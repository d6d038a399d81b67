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

from sdrpn.cli.requests import teacher_request
from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import positive_int
from sdrpn.terminal.checkpoint_arguments import add_teacher_arguments

HELP = "find the attention heads that point at what a question is about"
DESCRIPTION = """\
Let a checkpoint answer questions, and score every attention head by its share on the image, by how compact that share
is, and by how much it follows the question. `sdrpn label --heads` makes labels from the heads that are most often in a
question's top ten. Give 500 questions or more, with two or more on some images. Needs the [train] extra.
With --propose the same questions are labelled by the chosen heads, and short trainings, scored on held-out labels,
propose where `sdrpn train` should tap the LLM (K) and how many layers the RPN should have (T).

  sdrpn heads llava-v1.5-7b --data qa.jsonl --images images --out heads --limit 500 --device cuda --precision bf16
  sdrpn heads my-llava --data qa.jsonl --images images --out heads --propose --trial-steps 200
"""

# Options of the trial trainings, and the fields of their request.
_OF_TRIALS = {"tap_layers": "tap_layers", "rpn_layers": "rpn_layers", "trial_steps": "steps"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_teacher_arguments(parser)
    parser.add_argument(
        "--count", metavar="N", type=positive_int, default=3, help="number of heads to choose (default: 3)"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder to write heads.json and heads.png to")
    parser.add_argument(
        "--propose",
        nargs="?",
        const="official",
        metavar="NAME",
        help="also propose K and T, training with this preset of `sdrpn train` (default: official)",
    )
    parser.add_argument(
        "--tap-layers",
        metavar="K",
        type=positive_int,
        nargs="+",
        help="values of K to try (default: four around the middle)",
    )
    parser.add_argument(
        "--rpn-layers",
        metavar="T",
        type=positive_int,
        nargs="+",
        help="values of T to try (default: 1 2 3)",
    )
    parser.add_argument(
        "--trial-steps", metavar="N", type=positive_int, help="steps of each trial training (default: 100)"
    )
    parser.add_argument("--json", action="store_true", help="print the scores of every head as JSON")


def run(args: argparse.Namespace) -> int:
    """Score all heads, print the best, and write what `sdrpn label` reads."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.heads import HeadsRequest, ProposalRequest, find_heads
    from sdrpn.workflows.training_text import heads_text, proposal_text

    require_output_folder("--out", args.out)
    given = [name for name in _OF_TRIALS if getattr(args, name) is not None]
    if given and not args.propose:
        raise BadInput(f"--{given[0].replace('_', '-')} is for the trainings of --propose; name both or none")
    trials = {_OF_TRIALS[name]: getattr(args, name) for name in given}
    proposal = ProposalRequest(args.propose, **trials) if args.propose else None
    found = find_heads(HeadsRequest(teacher_request(args), args.count, args.out, proposal), progress)
    if args.json:
        print_json({"format_version": 1, "grounding": [list(head) for head in found.chosen], **found.details})
        return 0
    print_report(heads_text(found))
    if args.out is not None:
        report_written(args.out, "heads.json and heads.png")
    if found.proposal is not None:
        print_report(proposal_text(found.proposal))
    return 0
