"""`sdrpn relabel`: new labels from attention that was stored before.

The JSON form is `counts` of sdrpn.labels.labelling.Counts, and the `rule`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.terminal.argument_types import number_between
from sdrpn.terminal.arguments import filled

HELP = "label again by another rule, without running the model"
DESCRIPTION = """\
Clean the attention that `sdrpn label` stored by another rule, into a new folder for `sdrpn train`. The model does not
run again, so trying a rule takes seconds. Needs the [train] extra.

  sdrpn relabel labels --out labels-strict --foreground-share 0.3
  sdrpn relabel labels --out labels-raw --raw        # no cleaning, for comparison
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("labels", metavar="LABELS", type=Path, help="folder of `sdrpn label`")
    parser.add_argument("--out", metavar="NEW", type=Path, required=True, help="folder to write: new or empty")
    parser.add_argument(
        "--rule", choices=("sd-rpn", "sd-rpn-margin", "q-zoom"), default="sd-rpn", help="the rule (default: sd-rpn)"
    )
    shares = (
        ("foreground", "stronger cells are foreground, as a share of the strongest cell"),
        ("background", "weaker cells are background"),
        ("largest-box", "a sample whose box covers this share of the grid is left out"),
    )
    for name, text in shares:
        parser.add_argument(
            f"--{name}-share", metavar="X", type=number_between(0, 1), help=f"{text} (default: as the rule says)"
        )
    parser.add_argument("--raw", action="store_true", help="no sinks removed, nothing ignored")
    parser.add_argument("--json", action="store_true", help="print counts and rule as JSON")


def run(args: argparse.Namespace) -> int:
    """Label, and print how many samples there are."""
    from sdrpn.terminal.output import print_json, print_report, warn
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.workflows.label import RelabelRequest, relabel_questions
    from sdrpn.workflows.training_text import labels_text

    require_output_folder("--out", args.out)
    labelled = relabel_questions(filled(RelabelRequest, args))
    if args.json:
        print_json({"counts": labelled.counts, "rule": labelled.rule})
    else:
        print_report(labels_text(labelled.counts, str(args.out)))
        report_written(args.out, "labels")
        report_written(labelled.page, "page to look at")
        if labelled.lacking is not None:
            warn(labelled.lacking)
    return 0
