"""`sdrpn eval`: how well a model answers, with which way of looking.

The JSON form (and results.json) is an object with these entries, which only ever gain new ones while `format_version`
is 1:
    format_version  1
    task, metric    what was asked, and what accuracy means there
    samples         questions that every method was asked
    methods         by name: accuracy, mean_iou, contains, seconds_per_question and the rest of
                    sdrpn.evaluation.results.MethodResult
    differences     list of sdrpn.evaluation.results.Difference: method, baseline, difference, interval
    rpn_mean        null, or several RPNs taken together: sdrpn.evaluation.results.RpnMean
    settings        everything that decides the answers
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.cli.arguments import AUTO, bundle_folder, number_or_auto, positive_int, whole_number
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.cli.eval_model import OpenedModel
    from sdrpn.evaluation.records import Record
    from sdrpn.evaluation.results import Results
    from sdrpn.evaluation.task import Task

HELP = "measure how well a model answers, with and without a second look"
DESCRIPTION = """\
Ask a model the questions of a task with several methods (plain, sdrpn, attention-crop, oracle-crop, ...), in turn, and
print accuracy with intervals, how well the crops fit, and the time a question took. MODEL is a bundle (ONNX Runtime;
no attention maps, so no attention-crop, teacher-crop or vicrop) or a checkpoint (PyTorch, every method; needs the
[train] extra). docs/evaluation.md explains tasks and methods.

  sdrpn eval default --task tags --samples 500
  sdrpn eval bundle --task textvqa --data textvqa --methods plain,sdrpn --out results
  sdrpn eval checkpoint --task tags --rpn rpn --heads heads --methods all --out results
"""

FORMAT_VERSION = 1
TASKS = ("tags", "textvqa", "docvqa", "infovqa", "chartqa", "ocrbench", "pope", "vstar", "hrbench")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=bundle_folder,
        help="folder of a bundle or of a checkpoint, or default: the small model that comes with this package",
    )
    _add_data(parser.add_argument_group("what is asked"))
    _add_methods(parser.add_argument_group("how it looks"))
    _add_where(parser.add_argument_group("where it runs"))
    _add_output(parser.add_argument_group("what it writes"))
    add_model_options(parser, "model", "base", "vision_tower")


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--task", required=True, choices=TASKS, help="which questions")
    group.add_argument("--data", metavar="DIR", type=Path, help="folder of the task's official files; not for tags")
    group.add_argument(
        "--split", metavar="NAME", help="of tags: heldout or shifted; of hrbench: 4k or 8k (default: the first)"
    )
    group.add_argument(
        "--samples", metavar="N", type=positive_int, help="ask the first N questions (default: all, 500 of tags)"
    )
    group.add_argument("--seed", metavar="N", type=whole_number, default=0, help="of what is drawn (default: 0)")


def _add_methods(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--methods",
        metavar="A,B,...",
        help="names as in docs/evaluation.md, or all (default: plain,attention-crop,sdrpn,oracle-crop, as far as they "
        "are possible)",
    )
    group.add_argument(
        "--rpn",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="rpn.safetensors with rpn.json beside it; the first is sdrpn, each further one, by its own name or its "
        "folder's, sdrpn:NAME",
    )
    group.add_argument("--heads", metavar="NAME", help="grounding heads, as for `sdrpn label`")
    group.add_argument(
        "--threshold",
        metavar="X",
        type=number_or_auto(-1, 1),
        help="of the RoI map; auto: by labels that the model gives itself, for every RPN (default: the published "
        "one of the task)",
    )
    group.add_argument(
        "--attention-threshold",
        metavar="X",
        type=number_or_auto(0.01, 0.99),
        default=AUTO,
        help="share of the strongest cell's attention above which a cell counts; auto: as above (default: auto)",
    )
    group.add_argument(
        "--no-answers", action="store_true", help="only look: how well crops fit, for tasks with boxes; needs no answer"
    )
    group.add_argument("--upscale", choices=("mask", "bbox"), default="mask", help="as for `sdrpn ask`")
    group.add_argument(
        "--vicrop-layer", metavar="N", type=whole_number, help="layer of vicrop's attention (default: 14/32 of the way)"
    )


def _add_where(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--vision-tower", metavar="DIR", type=Path, help="of a checkpoint: as for `sdrpn export`")
    group.add_argument("--base", metavar="DIR", type=Path, help="of a checkpoint: as for `sdrpn export`")
    group.add_argument("--projector", metavar="FILE", type=Path, help="of a checkpoint: as for `sdrpn export`")
    group.add_argument("--fit", choices=("pad", "crop"), help="of a checkpoint: as for `sdrpn export` (default: pad)")
    group.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of a checkpoint (default: fp32)"
    )
    group.add_argument("--device", default="cpu", metavar="NAME", help="of a checkpoint: cpu, cuda, ... (default: cpu)")
    group.add_argument("--backend", default="onnxruntime", metavar="NAME", help="of a bundle: as for `sdrpn ask`")
    group.add_argument("--variant", metavar="NAME", help="of a bundle: as for `sdrpn ask`")
    group.add_argument("--threads", metavar="N", type=positive_int, help="CPU threads (default: the library's)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", metavar="DIR", type=Path, help="folder for records, results, and a page of worst cases")
    group.add_argument("--resume", action="store_true", help="go on with a run of the same settings in --out")
    group.add_argument("--json", action="store_true", help="print the results as JSON")


def run(args: argparse.Namespace) -> int:
    """Ask, score, and print."""
    from sdrpn.cli.eval_model import open_model
    from sdrpn.cli.output import print_table
    from sdrpn.cli.output_file import report_written, require_output_folder
    from sdrpn.evaluation.methods import methods_for
    from sdrpn.evaluation.results import summarise
    from sdrpn.evaluation.table import COLUMNS, difference_rows, rows
    from sdrpn.evaluation.tasks.named import open_task
    from sdrpn.evaluation.worst import write_worst_cases

    require_output_folder("--out", args.out)
    task = open_task(args.task, args.data, args.split, args.samples, args.seed)
    _check(args, task)
    wanted = None if args.methods is None else [name.strip() for name in args.methods.split(",") if name.strip()]
    with open_model(args, task, wanted) as model:
        methods = methods_for(wanted, task, model.answerer, model.setting)
        settings = _settings(args, task, methods, model)
        records = _records(args, task, methods, model, settings)
        fit = model.answerer.spec.vision.fit
    results = summarise(task, methods, records, settings)
    if args.out is not None:
        _write(args.out, results)
        write_worst_cases(args.out, task, methods, records, fit)
    if args.json:
        _print_json(results)
    else:
        print_table(COLUMNS, rows(results), title=f"{results.task}: {results.metric}, {results.samples:,} questions")
        print_table(("method", "less", "points", "95 % interval"), difference_rows(results), title="differences")
        if args.out is not None:
            report_written(args.out, "records, results and a page of worst cases")
    return 0


def _check(args: argparse.Namespace, task: Task) -> None:
    from sdrpn.errors import BadInput

    if args.no_answers and not task.has_boxes:
        raise BadInput(
            f"--no-answers measures crops against true boxes, and the task {task.name} has none; leave it out"
        )

    if args.resume and args.out is None:
        raise BadInput("--resume needs --out, the folder of the run to go on with")


def _settings(args: argparse.Namespace, task: Task, methods: tuple[str, ...], model: OpenedModel) -> dict[str, Any]:
    """Everything that decides the answers, for people and for --resume."""
    return {
        "model": model.about,
        "task": task.name,
        **task.settings,
        "data": None if args.data is None else str(args.data),
        "samples": len(task.samples),
        "methods": list(methods),
        "thresholds": model.thresholds,
        "upscale": args.upscale,
        "max_new_tokens": 0 if args.no_answers else task.max_new_tokens,
        "draw_seed": args.seed,
    }


def _records(
    args: argparse.Namespace, task: Task, methods: tuple[str, ...], model: OpenedModel, settings: dict[str, Any]
) -> list[Record]:
    """Those of this run and, with --resume, of the one that it goes on with."""
    from contextlib import nullcontext

    from sdrpn.cli.progress import progress
    from sdrpn.evaluation.records import RecordFile
    from sdrpn.evaluation.runner import run_methods

    file = None if args.out is None else RecordFile(args.out, settings, resume=args.resume)
    records = [] if file is None else list(file.done)
    done = {(record.index, record.method) for record in records}
    with file or nullcontext(), progress("eval", "answers") as advance:
        for record in run_methods(
            task, model.answerer, methods, model.setting, answers=not args.no_answers, done=done, progress=advance
        ):
            if file is not None:
                file.append(record)
            records.append(record)
    return records


def _write(out: Path, results: Results) -> None:
    import json

    from sdrpn.evaluation.table import markdown
    from sdrpn.host.atomic import replacing_file

    with replacing_file(out / "results.json") as path:
        path.write_text(json.dumps(_plain(results), indent=1) + "\n", "utf-8")
    with replacing_file(out / "results.md") as path:
        path.write_text(markdown(results), "utf-8")


def _print_json(results: Results) -> None:
    from sdrpn.cli.output import print_json

    print_json(_plain(results))


def _plain(results: Results) -> dict[str, Any]:
    import dataclasses

    return {"format_version": FORMAT_VERSION, **dataclasses.asdict(results)}
