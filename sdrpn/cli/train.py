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

from sdrpn.cli.requests import checkpoint_parts
from sdrpn.terminal.argument_types import non_negative_number, number_between, positive_int, whole_number
from sdrpn.terminal.arguments import add_threads_argument, filled
from sdrpn.terminal.checkpoint_arguments import add_part_arguments
from sdrpn.terminal.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.train.options import TrainOptions

HELP = "train an RPN on labels"
DESCRIPTION = """\
Train a region proposal network on the labels of `sdrpn label`. It starts from copies of the LLM's layers after the
tap; the layers below are frozen, and the model runs up to the tap only. Writes a folder for `sdrpn export --rpn`. The
defaults are those of the official training of LLaVA-1.5-7B. Needs the [train] extra.

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
        help="where tap activations are stored; trainings of one checkpoint can share it (default: taps in LABELS)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu"),
        default="auto",
        help="auto: a GPU if there is one, or the device from `accelerate launch` (default: auto)",
    )
    add_threads_argument(parser)
    parser.add_argument("--resume", action="store_true", help="continue a training with the same settings in --out")
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
    group.add_argument("--loss", choices=("bce", "focal"), help="loss of a cell (default: bce)")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--learning-rate", metavar="X", type=non_negative_number, help="highest learning rate")
    group.add_argument(
        "--warmup-share",
        metavar="X",
        type=number_between(0, 0.99),
        help="share of the steps for warm-up (default: 0.03)",
    )
    group.add_argument(
        "--weight-decay", metavar="X", type=non_negative_number, help="weight decay of AdamW (default: 0)"
    )
    group.add_argument(
        "--gradient-clip", metavar="X", type=non_negative_number, help="maximum gradient norm (default: 1)"
    )
    group.add_argument("--batch", metavar="N", type=positive_int, help="pairs per step, over all processes")
    group.add_argument(
        "--micro-batch",
        metavar="N",
        type=positive_int,
        help="pairs that one process runs at once; lower it to save memory",
    )
    group.add_argument("--epochs", metavar="N", type=positive_int, help="passes over the pairs")
    group.add_argument("--steps", metavar="N", type=positive_int, help="number of steps, instead of --epochs")
    group.add_argument("--limit-pairs", metavar="N", type=positive_int, help="train on the first N pairs only")
    group.add_argument(
        "--loss-normalisation",
        choices=("global", "official"),
        help="global: over the labelled cells of a step; official: mean of micro-batches (default: global)",
    )
    group.add_argument("--precision", choices=("fp32", "bf16"), help="precision of matrix products; weights stay fp32")
    group.add_argument(
        "--taps",
        choices=("fp16", "bf16", "fp32", "none"),
        help="store the frozen model's tap activations in files, or recompute them in every epoch",
    )
    group.add_argument(
        "--validation-share",
        metavar="X",
        type=number_between(0, 0.9),
        help="share of the images to hold out (default: 0.05)",
    )
    group.add_argument(
        "--validations",
        metavar="N",
        type=positive_int,
        help="number of validations, besides the one before the first step",
    )
    group.add_argument(
        "--split-seed", metavar="N", type=whole_number, help="seed of the choice of held-out images (default: 0)"
    )
    group.add_argument(
        "--save-every", metavar="N", type=positive_int, help="steps between saved states, for --resume (default: 100)"
    )
    group.add_argument("--seed", metavar="N", type=whole_number, help="seed of the order of pairs (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train, and print the result."""
    from sdrpn.terminal.output import print_json, print_report, warn
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.train import TrainingRequest, train
    from sdrpn.workflows.training_text import trained_text

    require_output_folder("--out", args.out)
    require_output_folder("--taps-dir", args.taps_dir)
    request = filled(TrainingRequest, args, checkpoint=checkpoint_parts(args), options=_options(args))
    trained = train(request, progress, warn)
    if args.json and trained.is_main:
        print_json(trained.to_json())
    elif trained.is_main:
        print_report(trained_text(trained))
        report_written(args.out, "RPN, for `sdrpn export --rpn`")
    return 0


def _options(args: argparse.Namespace) -> TrainOptions:
    import dataclasses

    from sdrpn.train.options import PRESETS

    preset = PRESETS[args.preset]
    names = [field.name for field in dataclasses.fields(preset)]
    return dataclasses.replace(
        preset, **{name: value for name in names if (value := getattr(args, name, None)) is not None}
    )
