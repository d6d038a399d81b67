"""Measure how well a model answers: every question with every method of looking, scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdrpn.errors import BadInput
from sdrpn.families.family import Resize
from sdrpn.families.registry import seen_of
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.hub import model_folder
from sdrpn.host.part import WHOLE, Part, part_from_text
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.host.shared_run import run_lock
from sdrpn.workflows.evaluated_model import BundleModel, CheckpointModel, LookChoice, model_at, open_model
from sdrpn.workflows.teacher import ModelPrecision

if TYPE_CHECKING:
    from sdrpn.evaluation.records import Record
    from sdrpn.evaluation.results import Results
    from sdrpn.evaluation.task import Task
    from sdrpn.method.spec import ModelSpec
    from sdrpn.workflows.evaluated_model import OpenedModel

__all__ = ["FORMAT_VERSION", "EvaluationRequest", "evaluate", "evaluate_model", "plain_results"]

FORMAT_VERSION = 1
RESULTS_NAME = "results.json"


@dataclass(frozen=True)
class EvaluationRequest(CheckedFields):
    """Which model answers which questions, and with which methods.

    task, data, split: the task, the folder of its official files, and the part of them
    samples: number of questions, from the first; None: all, or 500 of the rendered ones
    methods: names as in docs/evaluation.md, or "all"; None: the default ones that the model allows, or with `causal` or
        `curve` none further
    with_answers: False: measure only how well crops fit, for tasks with boxes
    out: folder for records, results and a page of worst cases; None: nothing is written
    resume: continue a run with the same settings in `out`
    causal: compare the RPN's crop with other content of it; adds the methods that this needs
    curve: accuracy over time and tokens for every threshold of a gate; adds the methods that this needs
    part: what this process asks; the last of several writes the results of all, to the same `out`
    """

    model: BundleModel | CheckpointModel
    task: str
    data: Path | None = None
    split: str | None = None
    samples: int | None = None
    methods: Sequence[str] | None = None
    look: LookChoice = field(default_factory=LookChoice)
    with_answers: bool = True
    out: Path | None = None
    resume: bool = False
    causal: bool = False
    curve: bool = False
    part: Part = WHOLE


def evaluate_model(
    model: Path | str,
    task: str,
    *,
    data: Path | str | None = None,
    split: str | None = None,
    samples: int | None = None,
    methods: Sequence[str] | None = None,
    threshold: float | Literal["auto"] | None = None,
    attention_threshold: float | Literal["auto"] = "auto",
    heads: str | None = None,
    upscale: Literal["mask", "bbox"] | None = None,
    vicrop_layer: int | None = None,
    seed: int = 0,
    gate_threshold: float | None = None,
    preset: str | None = None,
    image_tokens: tuple[int, int] | None = None,
    resize: Resize | None = None,
    with_answers: bool = True,
    rpns: Sequence[str] = (),
    vision_tower: Path | str | None = None,
    base: Path | str | None = None,
    projector: Path | str | None = None,
    fit: Literal["pad", "crop"] | None = None,
    precision: ModelPrecision | None = None,
    device: str | None = None,
    backend: str | None = None,
    variant: str | None = None,
    threads: int | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    causal: bool = False,
    curve: bool = False,
    shard: str | None = None,
    progress: ShowProgress = show_nothing,
) -> Results:
    """Ask a model the questions of a task with several methods, in turn, and score the answers.

    Args:
        model: folder of a bundle (ONNX Runtime; without methods that need attention) or of a checkpoint (PyTorch)
        task, data, split, samples, methods, with_answers, out, resume, causal, curve: see `EvaluationRequest`
        threshold, attention_threshold, heads, upscale, vicrop_layer, seed, gate_threshold, preset, image_tokens,
            resize: see `LookChoice`
        rpns, vision_tower, base, projector, fit, precision, device: for a checkpoint; see `CheckpointModel`
        backend, variant: for a bundle; see `BundleModel`
        threads: of the CPU; None: one per free core, and a single one for a small model
        shard: "I/N": ask part I of N, as one of several processes with the same `out`; None: everything
        progress: (title, unit) -> a context manager that gives a function of (done, total)
    Returns: by method: accuracy with intervals, how well the crops fit, and the seconds per question
    Raises: BadInput for what the model or the task cannot do; BadBundle, BadCheckpoint; MissingDependency
    """
    chosen = model_at(
        model_folder(model),
        rpns=rpns,
        vision_tower=vision_tower,
        base=base,
        projector=projector,
        fit=fit,
        precision=precision,
        device=device,
        backend=backend,
        variant=variant,
        threads=threads,
    )
    look = LookChoice(
        threshold,
        attention_threshold,
        heads,
        upscale,
        vicrop_layer,
        seed,
        gate_threshold,
        preset,
        image_tokens,
        resize,
    )
    request = EvaluationRequest(
        chosen,
        task,
        None if data is None else Path(data),
        split,
        samples,
        methods,
        look,
        with_answers,
        None if out is None else Path(out),
        resume,
        causal,
        curve,
        WHOLE if shard is None else part_from_text(shard),
    )
    return evaluate(request, progress)


def evaluate(request: EvaluationRequest, progress: ShowProgress = show_nothing) -> Results:
    """See `evaluate_model`."""
    from sdrpn.evaluation.records import combine_parts
    from sdrpn.evaluation.tasks.named import open_task

    task = open_task(request.task, request.data, request.split, request.samples, request.look.seed)
    _check(request, task)
    with open_model(request.model, task, request.methods, request.look, progress) as model:
        methods = _methods(request, task, model)
        settings = _settings(request, task, methods, model)
        records = _records(request, task, methods, model, settings, progress)
        spec, gate_threshold = model.answerer.spec, model.gate_threshold
    asked = _Asked(task, methods, settings, spec, gate_threshold)
    if request.out is None:
        return _results(request, asked, records)
    with nullcontext() if request.part.is_whole else run_lock(request.out):
        records = combine_parts(request.out, methods, len(task.samples))
        results = _results(request, asked, records)
        # The process that ends last writes; one that waited meanwhile finds the results.
        if request.part.is_whole or not (results.missing or (request.out / RESULTS_NAME).is_file()):
            _write(request.out, results, asked, records)
        return results


@dataclass(frozen=True)
class _Asked:
    """What was asked, of which model. gate_threshold: of its gate, if it has one."""

    task: Task
    methods: tuple[str, ...]
    settings: dict[str, Any]
    spec: ModelSpec
    gate_threshold: float | None


def _results(request: EvaluationRequest, asked: _Asked, records: Sequence[Record]) -> Results:
    """The figures of all questions that were asked with every method."""
    from sdrpn.evaluation.causal import causal_result
    from sdrpn.evaluation.gate_curve import gate_curve
    from sdrpn.evaluation.results import complete_records, summarise

    task, methods, rpn = asked.task, asked.methods, asked.spec.rpn
    by_method, probe = complete_records(methods, records), rpn is not None and rpn.gate_probe
    return dataclasses.replace(
        summarise(task, methods, records, asked.settings),
        missing=len(task.samples) * len(methods) - len(records),
        causal=causal_result(by_method) if request.causal else None,
        curve=gate_curve(by_method, asked.gate_threshold, probe=probe) if request.curve else None,
    )


def plain_results(results: Results) -> dict[str, Any]:
    """The results as in results.json."""
    return {"format_version": FORMAT_VERSION, **dataclasses.asdict(results)}


def _check(request: EvaluationRequest, task: Task) -> None:
    if not request.with_answers and not task.has_boxes:
        raise BadInput(
            f"without answers, crops are compared with true boxes, and the task {task.name} has none; ask for "
            "answers as well"
        )
    if not request.with_answers and (request.causal or request.curve):
        name = "causal" if request.causal else "curve"
        raise BadInput("what a crop is worth is measured by answers; ask for answers as well", options=(name,))
    if not request.part.is_whole and request.out is None:
        raise BadInput("processes that ask a part each share a folder; name it", options=("out",))
    if request.resume and request.out is None:
        raise BadInput("continuing a run needs its folder; name it", options=("out",))


def _methods(request: EvaluationRequest, task: Task, model: OpenedModel) -> tuple[str, ...]:
    """The methods of the run. Raises BadInput for those that model or task do not support."""
    from sdrpn.evaluation.causal import causal_methods
    from sdrpn.evaluation.gate_curve import curve_methods
    from sdrpn.evaluation.methods import has_gate, methods_for, require_methods

    gate, needed = has_gate(model.answerer.spec), list[str]()
    needed += causal_methods(gate=gate, boxes=task.has_boxes) if request.causal else ()
    needed += curve_methods(gate=gate, boxes=task.has_boxes) if request.curve else ()
    if not needed:
        return methods_for(request.methods, task, model.answerer, model.setting)
    require_methods(needed, task, model.answerer, model.setting)
    wanted = methods_for(request.methods, task, model.answerer, model.setting) if request.methods is not None else ()
    return tuple(dict.fromkeys((*needed, *wanted)))


def _settings(request: EvaluationRequest, task: Task, methods: tuple[str, ...], model: OpenedModel) -> dict[str, Any]:
    """Everything that decides the answers, for the report and for resuming."""
    return {
        "model": model.about,
        "task": task.name,
        **task.settings,
        "data": None if request.data is None else str(request.data),
        "samples": len(task.samples),
        "methods": list(methods),
        "thresholds": model.thresholds,
        "upscale": model.setting.policy.upscale,
        "max_new_tokens": task.max_new_tokens if request.with_answers else 0,
        "draw_seed": request.look.seed,
    }


def _records(
    request: EvaluationRequest,
    task: Task,
    methods: tuple[str, ...],
    model: OpenedModel,
    settings: dict[str, Any],
    progress: ShowProgress,
) -> list[Record]:
    """The records of this run and of the one that it continues."""
    from sdrpn.evaluation.records import RecordFile
    from sdrpn.evaluation.runner import run_methods

    # Threads change times alone, and processes of one run may lie on machines with other numbers of cores.
    about = {name: value for name, value in settings["model"].items() if name != "threads"}
    same = {**settings, "model": about}
    file = None if request.out is None else RecordFile(request.out, same, resume=request.resume, part=request.part)
    records = [] if file is None else list(file.done)
    done = {(record.index, record.method) for record in records}
    with file or nullcontext(), progress("eval", "answers") as advance:
        for record in run_methods(
            task,
            model.answerer,
            methods,
            model.setting,
            answers=request.with_answers,
            done=done,
            part=request.part,
            progress=advance,
        ):
            if file is not None:
                file.append(record)
            records.append(record)
    return records


def _write(out: Path, results: Results, asked: _Asked, records: Sequence[Record]) -> None:
    """Write all but the records; the results last: they say that a run is complete."""
    from sdrpn.evaluation.charts import draw_causal, draw_curve
    from sdrpn.evaluation.table import markdown
    from sdrpn.evaluation.worst import write_worst_cases
    from sdrpn.host.atomic import replacing_file

    write_worst_cases(out, asked.task, asked.methods, records, seen_of(asked.spec))
    if results.causal is not None:
        with replacing_file(out / "causal.png") as path:
            draw_causal(results.task, results.causal).save(path, "PNG")
    if results.curve is not None:
        with replacing_file(out / "curve.png") as path:
            draw_curve(results.task, results.curve).save(path, "PNG")
    with replacing_file(out / "results.md") as path:
        path.write_text(markdown(results), "utf-8")
    with replacing_file(out / RESULTS_NAME) as path:
        path.write_text(json.dumps(plain_results(results), indent=1) + "\n", "utf-8")
