"""`sdrpn verify`: how far a bundle's graphs are from the checkpoint: against the gates of each precision, or exactly.

The JSON form is an object with these entries, which only ever gain new ones while `format_version` is 1:
    format_version  1
    bundle          the folder
    checkpoint      the folder
    ok              whether every gate was passed; with --exact, every check
    checks          list of sdrpn.compare.graphs.Check: variant, graph, kind, tensor, found, expected, limit, ok, note
and without --exact:
    target          the target, or null for all variants
    engines         whether the engines themselves were run: "ran", or why not
    gates           by variant: list of sdrpn.bundle.engine_manifest.ParityGate
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.terminal.arguments import add_threads_argument, filled
from sdrpn.terminal.checkpoint_arguments import add_part_arguments
from sdrpn.terminal.model_folders import add_bundle_argument

HELP = "measure a bundle's graphs, or a target's engines, against the checkpoint"
DESCRIPTION = """\
Run the graphs that engines are built from in ONNX Runtime, and the checkpoint in PyTorch in float32, and compare: the
largest and the mean difference and the cosine of every output of every layer, the largest value that fp16 has to hold,
RoI maps, crops and tokens of seeded questions. Each precision has its gates; the results are written into the manifests
of the engines. Exits 1 if a gate fails. If a GPU fits the engines of --target, they answer the same questions. Needs
the [train] extra.
With --exact there are no gates: names, axes, shapes and values of every graph are compared, in that order, then RoI
map, boxes and generated tokens. Exits 1 if a difference is above its limit.

  sdrpn verify bundle --target rtx-4090 --checkpoint llava-v1.5-7b-roi-K15T3
  sdrpn verify bundle --exact --variant fused-fp16
  sdrpn verify demo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser, "checkpoint", "base", "vision_tower")
    parser.add_argument(
        "--target", metavar="NAME", help="the graphs and engines of this target (default: all variants)"
    )
    parser.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="checkpoint that the bundle was exported from (default: a folder of its name here or beside the bundle)",
    )
    parser.add_argument("--variant", metavar="NAME", help="this variant only (default: all, or the target's)")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="compare graph by graph, then answers, with the reference, instead of gates",
    )
    add_threads_argument(parser)
    add_source_arguments(parser)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the parts of the checkpoint, and --json."""
    add_part_arguments(parser, "as given to `sdrpn export`")
    parser.add_argument("--json", action="store_true", help="print every gate and every check as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure, print the result, and raise RunFailed if a difference is above its limit."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.verify import VerifyRequest, verify
    from sdrpn.workflows.verify_text import verification_text

    found = verify(filled(VerifyRequest, args), progress)
    if args.json:
        print_json(found.to_json())
    else:
        print_report(verification_text(found))
    found.require_ok()
    return 0
