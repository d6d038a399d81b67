"""The part of `sdrpn heads --propose`: label with the heads that were chosen, and try taps and sizes of the RPN."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sdrpn.cli.teacher import open_teacher, some_questions

if TYPE_CHECKING:
    from sdrpn.labels.head_choice import Head
    from sdrpn.labels.labelling import Counts

__all__ = ["print_proposal", "proposed"]

LARGEST_BATCH = 32  # a short training on some hundred questions needs steps more than large ones
HELD_OUT = 0.2  # of the images: more than for a training that is used


def proposed(args: argparse.Namespace, heads: tuple[Head, ...]) -> dict[str, Any]:
    """K and T with every trial, as heads.json has them. Labels go to `labels` in `--out`; a later call finds them."""
    import dataclasses

    from accelerate import Accelerator

    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.cli.progress import progress
    from sdrpn.train.board import draw_trials
    from sdrpn.train.label_set import read_labels
    from sdrpn.train.options import PRESETS
    from sdrpn.train.proposal import best_trial, try_taps, usual_tap_layers

    _label(args, heads)
    preset = PRESETS[args.propose]
    options = dataclasses.replace(
        preset,
        batch=min(preset.batch, LARGEST_BATCH),
        steps=args.trial_steps,
        precision="fp32" if args.precision == "fp32" else "bf16",
        taps="bf16",
        validation_share=HELD_OUT,
    )
    with open_checkpoint(
        args.checkpoint, vision_tower=args.vision_tower, base=args.base, projector=args.projector, fit=args.fit
    ) as checkpoint:
        taps = args.tap_layers or usual_tap_layers(checkpoint.spec.llm.layers)
        trials = try_taps(
            checkpoint,
            read_labels(args.out / "labels"),
            args.images,
            options,
            [(tap, own) for tap in taps for own in args.rpn_layers],
            args.out,
            Accelerator(cpu=args.device == "cpu"),
            progress,
        )
    best = best_trial(trials)
    draw_trials(args.out / "taps.png", trials, best)
    return {
        "tap_layer": best.tap_layer,
        "rpn_layers": best.rpn_layers,
        "steps": args.trial_steps,
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }


def print_proposal(proposal: dict[str, Any]) -> None:
    """One row a training."""
    from sdrpn.cli.output import print_table

    best = proposal["tap_layer"], proposal["rpn_layers"]
    rows = [
        (
            str(trial["tap_layer"]),
            str(trial["rpn_layers"]),
            f"{trial['loss']:.4f}",
            f"{trial['average_precision']:.3f}",
            f"{trial['box_iou']:.3f}",
            "yes" if (trial["tap_layer"], trial["rpn_layers"]) == best else "",
        )
        for trial in proposal["trials"]
    ]
    columns = ("K", "T", "held-out loss", "average precision", "box IoU", "proposed")
    print_table(columns, rows, title=f"trainings of {proposal['steps']} steps")


def _label(args: argparse.Namespace, heads: tuple[Head, ...]) -> Counts:
    from sdrpn.cli.progress import progress
    from sdrpn.labels.head_choice import HeadChoice
    from sdrpn.labels.labelling import LabelRun, label_questions

    with open_teacher(args) as (teacher, checkpoint), progress("label", "questions") as advance:
        run = LabelRun(checkpoint.digest(), tuple(some_questions(args)), HeadChoice("chosen", heads))
        return label_questions(run, teacher, args.out / "labels", resume=True, progress=advance)
