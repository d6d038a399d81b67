"""`sdrpn train`: labels become an RPN.

The JSON form is an object with these entries:
    out                     the folder that was written
    tap_layer, rpn_layers   K and T
    steps, pairs, held_out_pairs, parameters, seconds
    loss                    of the last step
    best_threshold          on the held-out labels, after the last step; null where nothing was held out
    validations             step, loss and quality (sdrpn.train.quality.Quality), from before the first step on
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import (
    add_threads_argument,
    filled,
    non_negative_number,
    number_between,
    positive_int,
    whole_number,
)
from sdrpn.cli.checkpoint_arguments import add_part_arguments, checkpoint_parts
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.train.options import TrainOptions
    from sdrpn.workflows.train import TrainedRpn

HELP = "train an RPN on labels"
DESCRIPTION = """\
Train a region proposal network on the labels of `sdrpn label`. It starts from copies of the LLM's layers behind the
tap; the model below stays as it is and runs up to the tap only. Writes a folder for `sdrpn export --rpn`. The default
numbers are those of the official training of LLaVA-1.5-7B. Needs the [train] extra.

  sdrpn train llava-v1.5-7b --labels labels --out rpn
  sdrpn train my-llava --labels labels --out rpn --tap-layer 12 --rpn-layers 2 --epochs 4 --taps fp16
  accelerate launch -m sdrpn.train llava-v1.5-7b --labels labels --out rpn      # on several GPUs or machines
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder of the checkpoint")
    parser.add_argument("--labels", metavar="LABELS", type=Path, required=True, help="folder of `sdrpn label`")
    parser.add_argument("--out", metavar="RPN_DIR", type=Path, required=True, help="folder to write: new or empty")
    add_part_arguments(parser)
    parser.add_argument(
        "--images", metavar="DIR", type=Path, help="folder of the images (default: the one that was labelled)"
    )
    parser.add_argument(
        "--taps-dir",
        metavar="DIR",
        type=Path,
        help="where stored taps are; trainings of one checkpoint may share it (default: taps in LABELS)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu"),
        default="auto",
        help="auto: a GPU if there is one, or what `accelerate launch` gives (default: auto)",
    )
    add_threads_argument(parser)
    parser.add_argument("--resume", action="store_true", help="go on with a training of the same settings in --out")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    _add_model_options(parser.add_argument_group("the RPN"))
    _add_training_options(parser.add_argument_group("the training (defaults: those of --preset)"))
    add_model_options(parser, "checkpoint", "base", "vision_tower")


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset",
        choices=("official", "tiny"),
        default="official",
        help="official: LLaVA-1.5-7B; tiny: a model of a few million parameters on a CPU (default: official)",
    )
    group.add_argument("--tap-layer", metavar="K", type=positive_int, help="LLM layers below the tap")
    group.add_argument("--rpn-layers", metavar="T", type=positive_int, help="layers of the RPN")
    group.add_argument("--loss", choices=("bce", "focal"), help="what a cell costs (default: bce)")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--learning-rate", metavar="X", type=non_negative_number, help="highest learning rate")
    group.add_argument("--warmup-share", metavar="X", type=number_between(0, 0.99), help="of the steps (default: 0.03)")
    group.add_argument("--weight-decay", metavar="X", type=non_negative_number, help="of AdamW (default: 0)")
    group.add_argument("--gradient-clip", metavar="X", type=non_negative_number, help="longest gradient (default: 1)")
    group.add_argument("--batch", metavar="N", type=positive_int, help="pairs a step, over all processes")
    group.add_argument(
        "--micro-batch", metavar="N", type=positive_int, help="pairs that one process runs at once; lower it for memory"
    )
    group.add_argument("--epochs", metavar="N", type=positive_int, help="passes over the pairs")
    group.add_argument("--steps", metavar="N", type=positive_int, help="steps, in place of --epochs")
    group.add_argument("--limit-pairs", metavar="N", type=positive_int, help="train on the first N pairs only")
    group.add_argument(
        "--loss-normalisation",
        choices=("global", "official"),
        help="global: by the labelled cells of a step; official: mean of micro-batches (default: global)",
    )
    group.add_argument("--precision", choices=("fp32", "bf16"), help="of matrix products; weights stay fp32")
    group.add_argument(
        "--taps",
        choices=("fp16", "bf16", "fp32", "none"),
        help="keep what the frozen model computes in files, or compute it again in every epoch",
    )
    group.add_argument(
        "--validation-share", metavar="X", type=number_between(0, 0.9), help="of the images, held out (default: 0.05)"
    )
    group.add_argument(
        "--validations", metavar="N", type=positive_int, help="how often to validate, besides before the first step"
    )
    group.add_argument("--split-seed", metavar="N", type=whole_number, help="which images these are (default: 0)")
    group.add_argument(
        "--save-every", metavar="N", type=positive_int, help="steps between states to go on from (default: 100)"
    )
    group.add_argument("--seed", metavar="N", type=whole_number, help="order of the pairs (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train, and say how it went."""
    from sdrpn.terminal.output import warn
    from sdrpn.terminal.output_file import require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.train import TrainingRequest, train

    require_output_folder("--out", args.out)
    require_output_folder("--taps-dir", args.taps_dir)
    request = filled(TrainingRequest, args, checkpoint=checkpoint_parts(args), options=_options(args))
    trained = train(request, progress, warn)
    if trained.is_main:
        _print_report(args, trained)
    return 0


def _options(args: argparse.Namespace) -> TrainOptions:
    import dataclasses

    from sdrpn.train.options import PRESETS

    preset = PRESETS[args.preset]
    names = [field.name for field in dataclasses.fields(preset)]
    return dataclasses.replace(
        preset, **{name: value for name in names if (value := getattr(args, name, None)) is not None}
    )


def _print_report(args: argparse.Namespace, trained: TrainedRpn) -> None:
    from sdrpn.terminal.output import print_json, print_table, print_text
    from sdrpn.terminal.output_file import report_written

    if args.json:
        print_json(trained.to_json())
        return
    options, report = trained.options, trained.report
    history, found = report.history, report.history.validations
    print_text(
        f"{args.out}: an RPN of {options.rpn_layers} layers after layer {options.tap_layer}, "
        f"{report.parameters:,} parameters, {report.steps} steps on {report.pairs:,} pairs in {history.seconds:.0f} s"
    )
    columns = ("step", "held-out loss", "average precision", "cell IoU", "box IoU", "at threshold")
    rows = [
        (
            str(one.step),
            f"{one.loss:.4f}",
            f"{one.quality.average_precision:.3f}",
            f"{one.quality.best.cell_iou:.3f}",
            f"{one.quality.best.box_iou:.3f}",
            f"{one.quality.best.threshold:g}",
        )
        for one in found
    ]
    if rows:
        centre = found[-1].quality.centre_box_iou
        print_table(columns, rows, title=f"{report.held_out_pairs} held-out pairs; a box in the middle: {centre:.3f}")
    report_written(args.out, "RPN, for `sdrpn export --rpn`")
