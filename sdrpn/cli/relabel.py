"""`sdrpn relabel`: other labels from attention that was gathered before.

The JSON form is `counts` of sdrpn.labels.labelling.Counts, and the `rule`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.cli.arguments import number_between

HELP = "label once more by another rule, without running the model"
DESCRIPTION = """\
Clean the attention that `sdrpn label` gathered by another rule, into a new folder that `sdrpn train` takes. The model
does not run again, so trying a rule takes seconds. Needs the [train] extra.

  sdrpn relabel labels --out labels-strict --foreground-share 0.3
  sdrpn relabel labels --out labels-raw --raw        # no cleaning, to see what it is worth
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("labels", metavar="LABELS", type=Path, help="folder of `sdrpn label`")
    parser.add_argument("--out", metavar="NEW", type=Path, required=True, help="folder to write: new or empty")
    # The defaults are those of LabelRule, which would load NumPy for --help.
    shares = (
        ("foreground", 0.2, "stronger cells are foreground, as a share of the strongest cell"),
        ("background", 0.1, "weaker cells are background"),
        ("largest-box", 0.5, "a sample whose box covers this share of the grid is left out"),
    )
    for name, default, text in shares:
        parser.add_argument(
            f"--{name}-share", metavar="X", type=number_between(0, 1), default=default, help=f"{text} ({default:g})"
        )
    parser.add_argument("--raw", action="store_true", help="no sinks removed, nothing ignored")
    parser.add_argument("--json", action="store_true", help="print counts and rule as JSON")


def run(args: argparse.Namespace) -> int:
    """Label, and say how many samples there are."""
    import dataclasses

    from sdrpn.cli.output import print_json, print_table
    from sdrpn.cli.output_file import report_written, require_output_folder
    from sdrpn.host.json_files import read_json_object
    from sdrpn.host.libraries import importing_extra

    require_output_folder("--out", args.out)
    with importing_extra("train", "sdrpn relabel"):
        from sdrpn.labels.denoise import LabelRule
        from sdrpn.labels.labelling import LABELS_NAME, relabel
        from sdrpn.labels.report import REPORT, write_report

    rule = LabelRule(args.foreground_share, args.background_share, args.largest_box_share, args.raw)
    counts = relabel(args.labels, args.out, rule)
    about = read_json_object(args.out / LABELS_NAME, "label again")
    provenance = {key: value for key, value in about.items() if key not in ("images", "counts")}
    write_report(args.out, Path(about["images"]), counts, provenance)
    if args.json:
        print_json({"counts": counts, "rule": rule})
    else:
        rows = [(name.replace("_", " "), f"{value:,}") for name, value in dataclasses.asdict(counts).items()]
        print_table(("of the questions", "count"), rows, title=str(args.out))
        report_written(args.out, "labels")
        report_written(args.out / REPORT, "page to look at")
    return 0
