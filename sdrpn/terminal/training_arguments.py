"""Arguments of trainings: their numbers, the gate, and the views of gate labels. Imports no library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sdrpn.errors import BadInput
from sdrpn.terminal.argument_types import non_negative_number, number_between, positive_int, whole_number

__all__ = ["add_gate_options", "add_training_options", "add_view_arguments", "require_one_training"]

# Options of one of the two trainings alone.
_RPN_ONLY = (
    "tap_layer",
    "rpn_layers",
    "loss",
    "loss_normalisation",
    "limit_pairs",
    "validations",
    "scheme",
)
_GATE_ONLY = ("gate_kind", "gate_layers", "gate_start", "allowed_loss", "penalty")
# A probe is fitted at once, without steps and without layers.
_STEPS_ONLY = (
    "learning_rate",
    "warmup_share",
    "weight_decay",
    "gradient_clip",
    "batch",
    "epochs",
    "steps",
    "save_every",
    "resume",
)
_LAYERS_ONLY = ("gate_layers", "gate_start", *_STEPS_ONLY)
_PROBE_ONLY = ("penalty",)


def add_gate_options(group: argparse._ArgumentGroup) -> None:
    """Declare what a gate is."""
    group.add_argument("--gate", action="store_true", help="train a gate for the RPN of --rpn, on gate labels")
    group.add_argument(
        "--gate-kind",
        choices=("layers", "probe"),
        help="layers: decoder layers on the tap; probe: a linear probe of the tap's last row and the map, which it "
        "needs at every question (default: layers)",
    )
    group.add_argument(
        "--gate-layers", metavar="T", type=positive_int, help="layers of the gate (default: the preset's)"
    )
    group.add_argument(
        "--gate-start",
        choices=("copied", "random"),
        help="copied: from the LLM's layers after the tap; random (default: copied)",
    )
    group.add_argument(
        "--allowed-loss",
        metavar="X",
        type=number_between(0, 1),
        help="accuracy that the chosen threshold may cost on held-out questions (default: 0.005)",
    )
    group.add_argument(
        "--penalty", metavar="X", type=non_negative_number, help="penalty on a probe's weights (default: 0.01)"
    )


def add_training_options(group: argparse._ArgumentGroup) -> None:
    """Declare the numbers of a training, of an RPN or a gate."""
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
        help="share of the images to hold out (default: 0.05; of a gate 0.1)",
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


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare at which views gate labels are asked for, and what is right."""
    parser.add_argument(
        "--resolutions",
        metavar="N,N,N",
        type=_ascending,
        default=(),
        help="numbers of image tokens, ascending, three or more (default: one look and two, for LLaVA)",
    )
    parser.add_argument(
        "--agreement",
        choices=("text", "exact", "number", "letter"),
        default="text",
        help="how answers are compared. text: one contains the other, ignoring case and punctuation; exact; number: to "
        "5 %%; letter: the same option (default: text)",
    )
    parser.add_argument(
        "--agree-with",
        choices=("truth", "highest"),
        default="truth",
        help="what is right. truth: the answer in the data; highest: that of the best view, so that no annotation is "
        "needed (default: truth)",
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=number_between(-1, 1),
        help="threshold of the RoI map for the second look (default: its own)",
    )


def _ascending(text: str) -> tuple[int, ...]:
    """Numbers with commas between them; what they must be, the model knows."""
    try:
        return tuple(positive_int(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers of image tokens; expected some such as 128,256,512"
        ) from error


def require_one_training(args: argparse.Namespace) -> None:
    """Raise BadInput for options of the other training, or of the other kind of gate."""
    if not args.gate:
        _refuse(args, (*_GATE_ONLY, "rpn"), "the training of a gate; add --gate")
        return
    _refuse(args, _RPN_ONLY, "the training of an RPN; leave it out")
    if args.gate_kind == "probe":
        _refuse(args, _LAYERS_ONLY, "a gate of layers, and a probe has none and is fitted at once; leave it out")
    else:
        _refuse(args, _PROBE_ONLY, "a probe; add --gate-kind probe, or leave it out")


def _refuse(args: argparse.Namespace, names: Sequence[str], what: str) -> None:
    # 0 is a value that was given.
    given = next((name for name in names if (value := getattr(args, name)) is not None and value is not False), None)
    if given is not None:
        raise BadInput(f"--{given.replace('_', '-')} is for {what}", options=(given,))
