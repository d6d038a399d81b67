"""`sdrpn train`: labels become an RPN.

The JSON form is an object with these entries:
    out                     the folder that was written
    tap_layer, rpn_layers   K and T
    steps, pairs, held_out_pairs, parameters, seconds
    loss                    of the last step
    best_threshold          on the held-out labels, after the last step; null where nothing was held out
    validations             step, loss and quality (sdrpn.train.quality.Quality), from before the first step on

With --gate it has these:
    out, parameters, steps, seconds, loss   as above
    kind, layers            of the gate
    samples, held_out       questions that it was trained and measured on
    threshold               the chosen one
    before, after           on held-out questions: loss, auc, threshold, share, accuracy, once, twice, curve, and
                            gain_over_random, its mean height above a gate that draws
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.requests import checkpoint_parts
from sdrpn.terminal.argument_types import positive_int
from sdrpn.terminal.arguments import add_threads_argument, changed, filled
from sdrpn.terminal.checkpoint_arguments import add_checkpoint_argument, add_part_arguments
from sdrpn.terminal.training_arguments import add_gate_options, add_training_options, require_one_training

if TYPE_CHECKING:
    from sdrpn.workflows.checkpoint_parts import CheckpointParts

HELP = "train an RPN, or a gate, on labels"
DESCRIPTION = """\
Train a region proposal network on the labels of `sdrpn label`. It starts from copies of the LLM's layers after the
tap; the layers below are frozen, and the model runs up to the tap only. Writes a folder for `sdrpn export --rpn`. The
defaults are those of the official training of LLaVA-1.5-7B. With --gate a gate is trained instead, on the labels of
`sdrpn gate-label` and for the RPN of --rpn: the folder has both. Needs the [train] extra.

  sdrpn train llava-v1.5-7b --labels labels --out rpn
  sdrpn train my-llava --labels labels --out rpn --tap-layer 12 --rpn-layers 2 --epochs 4 --taps fp16
  accelerate launch -m sdrpn.train llava-v1.5-7b --labels labels --out rpn      # on several GPUs or machines
  sdrpn train my-llava --gate --rpn rpn --labels gate-labels --out rpn-with-gate
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--labels", metavar="LABELS", type=Path, required=True, help="folder of `sdrpn label` or `gate-label`"
    )
    parser.add_argument("--out", metavar="RPN_DIR", type=Path, required=True, help="folder to write: new or empty")
    add_part_arguments(parser)
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="folder of the images (default: the one that was labelled)"
    )
    parser.add_argument(
        "--taps-dir",
        metavar="DIR",
        type=Path,
        help="where tap activations are stored; trainings of one checkpoint can share it (default: taps in LABELS)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a GPU if there is one, or that of `accelerate launch`; cuda: a GPU, or an error (default: auto)",
    )
    add_threads_argument(parser)
    parser.add_argument("--resume", action="store_true", help="continue a training with the same settings in --out")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    _add_model_options(parser.add_argument_group("the RPN"))
    add_gate_options(parser.add_argument_group("a gate"))
    add_training_options(parser.add_argument_group("the training (defaults: those of --preset)"))


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset",
        metavar="NAME",
        default="official",
        help="official: LLaVA-1.5-7B; tiny: a model of a few million parameters on a CPU; or one of the published "
        "models in docs/training.md, which an unknown name lists (default: official)",
    )
    group.add_argument("--tap-layer", metavar="K", type=positive_int, help="LLM layers below the tap")
    group.add_argument("--rpn-layers", metavar="T", type=positive_int, help="layers of the RPN")
    group.add_argument(
        "--scheme",
        choices=("auto", "sd-rpn", "q-zoom"),
        help="whose RPN it becomes, for families that have both (default: auto, the usual one)",
    )
    group.add_argument("--loss", choices=("bce", "focal"), help="loss of a cell (default: bce)")


def _checkpoint(args: argparse.Namespace) -> CheckpointParts:
    """Here `--scheme` is about the RPN that is trained, not about one that the checkpoint has."""
    return checkpoint_parts(args, scheme="auto")


def run(args: argparse.Namespace) -> int:
    """Train, and print the result."""
    from sdrpn.terminal.output import print_json, print_report, warn
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.train.options import preset_named
    from sdrpn.workflows.train import TrainingRequest, train
    from sdrpn.workflows.training_text import trained_text

    require_output_folder("--out", args.out)
    require_output_folder("--taps-dir", args.taps_dir)
    require_one_training(args)
    if args.gate:
        return _run_gate(args)
    options = changed(preset_named(args.preset), args)
    request = filled(TrainingRequest, args, checkpoint=_checkpoint(args), options=options)
    trained = train(request, progress, warn)
    if args.json and trained.is_main:
        print_json(trained.to_json())
    elif trained.is_main:
        print_report(trained_text(trained))
        report_written(args.out, "RPN, for `sdrpn export --rpn`")
    return 0


def _run_gate(args: argparse.Namespace) -> int:
    from sdrpn.gate.options import gate_preset_named
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.gate_text import trained_gate_text
    from sdrpn.workflows.train_gate import GateTrainingRequest, train_gate

    own = {"kind": args.gate_kind, "layers": args.gate_layers, "start": args.gate_start}
    options = changed(gate_preset_named(args.preset), args, **own)
    request = filled(GateTrainingRequest, args, checkpoint=_checkpoint(args), options=options)
    trained = train_gate(request, progress)
    if args.json and trained.is_main:
        print_json(trained.to_json())
    elif trained.is_main:
        print_report(trained_gate_text(trained))
        report_written(args.out, "RPN with a gate, for `sdrpn export --rpn`")
    return 0
