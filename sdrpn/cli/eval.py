"""`sdrpn eval`: how well a model answers, by method of looking.

The JSON form (and results.json) is an object with these entries, which only ever gain new ones while `format_version`
is 1:
    format_version  1
    task, metric    the task, and what accuracy means for it
    samples         number of questions that every method was asked
    methods         by name: accuracy, mean_iou, contains, seconds_per_question and the rest of
                    sdrpn.evaluation.results.MethodResult
    differences     list of sdrpn.evaluation.results.Difference: method, baseline, difference, interval
    rpn_mean        null, or the mean of several RPNs: sdrpn.evaluation.results.RpnMean
    settings        everything that decides the answers
    missing         with --shard: answers that other processes have yet to give; else 0
    causal          null, or with --causal: sdrpn.evaluation.causal.CausalResult
    curve           null, or with --curve: sdrpn.evaluation.gate_curve.GateCurve
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.terminal.argument_types import AUTO, number_or_auto, positive_int, whole_number
from sdrpn.terminal.arguments import add_shard_argument, add_threads_argument, bundle_folder, filled, take_part
from sdrpn.terminal.checkpoint_arguments import add_part_arguments
from sdrpn.terminal.look_arguments import add_look_arguments, add_worth_arguments
from sdrpn.terminal.model_folders import name_model_folders

if TYPE_CHECKING:
    from sdrpn.workflows.evaluate import EvaluationRequest
    from sdrpn.workflows.evaluated_model import BundleModel, CheckpointModel

HELP = "measure how well a model answers, with and without a second look"
DESCRIPTION = """\
Ask a model the questions of a task with several methods (plain, sdrpn, attention-crop, oracle-crop, ...), in turn, and
print accuracy with intervals, how well the crops fit, and the time per question. MODEL is a bundle (ONNX Runtime;
no attention maps, so no attention-crop, teacher-crop or vicrop) or a checkpoint (PyTorch, every method; needs the
[train] extra). docs/evaluation.md explains tasks and methods.

  sdrpn eval demo --task tags --samples 500
  sdrpn eval bundle --task textvqa --data textvqa --methods plain,sdrpn --out results
  sdrpn eval demo --task tags --causal --curve --out results
  sdrpn eval checkpoint --task tags --rpn rpn --heads heads --methods all --out results
"""

TASKS = ("tags", "textvqa", "docvqa", "infovqa", "chartqa", "ocrbench", "pope", "vstar", "hrbench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=bundle_folder,
        help="folder of a bundle or of a checkpoint, or demo: the small model that ships with this package",
    )
    _add_data(parser.add_argument_group("what is asked"))
    _add_methods(parser.add_argument_group("how it looks"))
    _add_where(parser.add_argument_group("where it runs"))
    _add_output(parser.add_argument_group("what it writes"))
    name_model_folders(parser, "model", "base", "vision_tower")


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--task", required=True, choices=TASKS, help="the data set")
    group.add_argument("--data", metavar="DIR", type=Path, help="folder of the task's official files; not for tags")
    group.add_argument(
        "--split", metavar="NAME", help="for tags heldout, shifted or mixed; for hrbench 4k or 8k (default: the first)"
    )
    group.add_argument(
        "--samples", metavar="N", type=positive_int, help="ask only the first N questions (default: all; for tags 500)"
    )
    group.add_argument(
        "--seed", metavar="N", type=whole_number, default=0, help="seed of all random choices (default: 0)"
    )


def _add_methods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--methods",
        metavar="A,B,...",
        help="names as in docs/evaluation.md, or all (default: those of plain,attention-crop,sdrpn,oracle-crop "
        "that the model allows)",
    )
    group.add_argument(
        "--rpn",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="rpn.safetensors with rpn.json beside it; the first is the method sdrpn, each further one sdrpn:NAME, by "
        "the given name or its folder's",
    )
    group.add_argument("--heads", metavar="NAME", help="grounding heads, as for `sdrpn label`")
    group.add_argument(
        "--threshold",
        metavar="X",
        type=number_or_auto(-1, 1),
        help="threshold of the RoI map; auto: chosen for every RPN by labels from the model's own attention (default: "
        "that of its training or export, else the task's published one)",
    )
    add_look_arguments(group)
    group.add_argument(
        "--attention-threshold",
        metavar="X",
        type=number_or_auto(0.01, 0.99),
        default=AUTO,
        help="share of the strongest cell's attention above which a cell counts; auto: as above (default: auto)",
    )
    group.add_argument(
        "--no-answers", action="store_true", help="measure only how well crops fit; for tasks with boxes"
    )
    add_worth_arguments(group)
    group.add_argument("--upscale", choices=("mask", "bbox"), help="as for `sdrpn ask`")
    group.add_argument(
        "--vicrop-layer",
        metavar="N",
        type=whole_number,
        help="layer of vicrop's attention (default: at 14/32 of the depth)",
    )


def _add_where(group: argparse._ArgumentGroup) -> None:
    add_part_arguments(group, "for a checkpoint: as for `sdrpn export`", with_rpn=False)
    group.add_argument("--fit", choices=("pad", "crop"), help="for a checkpoint: as for `sdrpn export` (default: pad)")
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        help="for a checkpoint: its precision (default: fp32)",
    )
    group.add_argument("--device", metavar="NAME", help="for a checkpoint: cpu, cuda, ... (default: cpu)")
    group.add_argument("--backend", metavar="NAME", help="for a bundle: as for `sdrpn ask` (default: onnxruntime)")
    group.add_argument("--variant", metavar="NAME", help="for a bundle: as for `sdrpn ask`")
    add_threads_argument(group)


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to write records, results and a page of the worst cases to"
    )
    group.add_argument("--resume", action="store_true", help="continue a run with the same settings in --out")
    add_shard_argument(group)
    group.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Ask, score and print."""
    from sdrpn.evaluation.table import results_text
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.evaluate import evaluate, plain_results

    require_output_folder("--out", args.out)
    take_part(args)
    results = evaluate(_request(args), progress)
    if args.json:
        print_json(plain_results(results))
    elif results.missing:
        print_report([f"{args.out}: {results.missing:,} answers of other parts are missing; the last part writes all"])
    else:
        print_report(results_text(results))
        if args.out is not None:
            report_written(args.out, "records, results and a page of the worst cases")
    return 0


def _request(args: argparse.Namespace) -> EvaluationRequest:
    from sdrpn.workflows.evaluate import EvaluationRequest
    from sdrpn.workflows.evaluated_model import LookChoice

    methods = None if args.methods is None else [name.strip() for name in args.methods.split(",") if name.strip()]
    look, answers = filled(LookChoice, args), not args.no_answers
    return filled(
        EvaluationRequest,
        args,
        model=_model(args),
        methods=methods,
        look=look,
        with_answers=answers,
    )


def _model(args: argparse.Namespace) -> BundleModel | CheckpointModel:
    from sdrpn.workflows.evaluated_model import model_at

    names = ("vision_tower", "base", "projector", "fit", "precision", "device", "backend", "variant", "threads")
    return model_at(args.model, rpns=args.rpn, **{name: getattr(args, name) for name in names})
