"""Measure what 8 and 4 bits cost a checkpoint, part by part, and which parts are worth keeping in fp16."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdrpn.errors import BadInput
from sdrpn.host.field_types import CheckedFields
from sdrpn.host.libraries import importing_extra
from sdrpn.host.progress import ShowProgress, show_nothing
from sdrpn.workflows.checkpoint_parts import CheckpointParts
from sdrpn.workflows.teacher import ModelPrecision, require_device, some_questions
from sdrpn.workflows.torch_threads import torch_threads

if TYPE_CHECKING:
    from sdrpn.calibration.sensitivity import Asked, Cost, Rounding
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.export.quantization import Blocks
    from sdrpn.labels.questions import DataQuestion

__all__ = ["CHOICES", "COLUMNS", "QuantizeRequest", "RoundingCosts", "cost_rows", "measure_rounding"]

_EXTRA = ("train", "sdrpn quantize")
CHOICES = ("int8-b32-rtn", "int4-b32-rtn", "int4-b32-hqq")
# A part is worth keeping if rounding it alone lowers the mean cosine below this, or changes this share of answers.
KEEP_COSINE, KEEP_ANSWERS = 0.999, 0.98
COLUMNS = ("part", "choice", "weights", "RoI cosine", "least", "box IoU", "same decision", "same answer")


@dataclass(frozen=True)
class QuantizeRequest(CheckedFields):
    """What to round, how, and which questions to ask.

    data, images, limit: questions, as in `TeacherRequest`
    choices: ways to round: intBITS-bBLOCK-METHOD, as in the names of weight files
    parts: some of vision, layers.N, rpn, lm_head; None: all, and finally everything that an export rounds by default
    threshold, upscale: of `sdrpn.method.roi.RoiPolicy`; None: the checkpoint's own
    threads: of the CPU, as in `TeacherRequest`
    report: folder for sensitivity.json, .md and .png: new or empty; None: nothing is written
    """

    checkpoint: CheckpointParts
    data: Path
    images: Path
    limit: int | None = None
    choices: Sequence[str] = CHOICES
    parts: Sequence[str] | None = None
    max_new_tokens: int = 32
    threshold: float | None = None
    upscale: Literal["mask", "bbox"] | None = None
    precision: ModelPrecision = "fp32"
    device: str = "cpu"
    threads: int | None = None
    report: Path | None = None


@dataclass(frozen=True)
class RoundingCosts:
    """The measured costs and the number of questions; `worth_keeping`: parts for which even the best 4-bit choice costs
    too much."""

    questions: int
    costs: tuple[Cost, ...]
    worth_keeping: tuple[str, ...]


def measure_rounding(request: QuantizeRequest, progress: ShowProgress = show_nothing) -> RoundingCosts:
    """Round one part of a checkpoint at a time, and compare maps, boxes and answers with the checkpoint itself.

    Raises: BadInput before the measurement, which takes long; BadCheckpoint; MissingDependency
    """
    choices = _choices(request.choices)
    questions = some_questions(request.data, request.images, request.limit)
    _require_new(request.report)
    request.checkpoint.look(*_EXTRA)
    with importing_extra(*_EXTRA):
        from sdrpn.calibration.sensitivity import measure_costs, parts_of
        from sdrpn.model import model_from_checkpoint
        from sdrpn.model.dtypes import torch_dtype

    with request.checkpoint.open() as source:
        device = require_device(request.device)
        asked = _asked(request, source, questions)
        model = model_from_checkpoint(source, torch_dtype(request.precision)).to(device)
    matrices = parts_of(model)
    parts = _parts(request.parts, list(matrices))
    for part in parts:
        _require_blocks(part, {matrix.in_features for matrix in matrices[part]}, choices)
    together = [] if request.parts is not None else [name for name in parts if name.startswith("layers.")]
    roundings = {name: _rounding(blocks) for name, blocks in choices.items()}
    with torch_threads(request.threads, model.spec), progress("quantize", "answers") as advance:
        costs = tuple(measure_costs(model, asked, roundings, parts, together=together, advance=advance))
    if request.report is not None:
        _write_report(request.report, costs)
    return RoundingCosts(len(asked), costs, _worth_keeping(costs))


def cost_rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    """The costs as rows of text, for COLUMNS."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.5f}"

    return [
        (
            cost.part,
            cost.choice,
            f"{cost.weights:,}",
            *map(number, (cost.roi_cosine, cost.roi_cosine_min, cost.box_iou, cost.same_decision, cost.same_answer)),
        )
        for cost in costs
    ]


# What is asked for ---------------------------------------------------------------------------------------------------


def _choices(names: Sequence[str]) -> dict[str, Blocks]:
    if not names:
        raise BadInput("no way to round is given; expected intBITS-bBLOCK-METHOD, such as int4-b32-rtn")
    return {name: _blocks(name) for name in dict.fromkeys(names)}


def _blocks(name: str) -> Blocks:
    """Parse a name such as int4-b32-rtn. Raises BadInput for anything else."""
    from sdrpn.export.quantization import METHODS, Blocks

    found = re.fullmatch(r"int(4|8)-b(\d+)-(\w+)", name)
    if found is None:
        raise BadInput(f"{name} is not a way to round; expected intBITS-bBLOCK-METHOD, such as int4-b32-rtn")
    if found[3] == "gptq" or found[3] not in METHODS:
        raise BadInput(f"{name}: the method is {found[3]}; expected rtn or hqq")
    bits: Any = int(found[1])
    return Blocks(bits, int(found[2]), found[3])


def _rounding(blocks: Blocks) -> Rounding:
    from sdrpn.export.quantization import dequantized, quantize

    return lambda matrix: dequantized(*quantize(matrix, blocks))


def _require_blocks(part: str, widths: Iterable[int], choices: Mapping[str, Blocks]) -> None:
    """Raises BadInput if a choice cannot round a part."""
    for name, blocks in choices.items():
        misfit = [width for width in widths if width % blocks.size]
        if misfit:
            raise BadInput(
                f"{name}: {part} has a matrix of {misfit[0]} inputs, which blocks of {blocks.size} do not divide; "
                "choose others, such as int4-b16-rtn, or other parts",
                options=("choices", "parts"),
            )


def _parts(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    if names is None:
        return list(known)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise BadInput(
            f"there is no {unknown[0] if unknown else 'name'}; expected {', '.join(known)}", options=("parts",)
        )
    return list(names)


def _require_new(folder: Path | None) -> None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} exists and is not an empty folder; name a new one", options=("report",))


def _asked(request: QuantizeRequest, source: Checkpoint, questions: Sequence[DataQuestion]) -> list[Asked]:
    from sdrpn.calibration.sensitivity import Asked
    from sdrpn.checkpoint.tokenizer import tokenizer_of
    from sdrpn.families.registry import prompt_of
    from sdrpn.images.image import open_image
    from sdrpn.method.policy import RoiChange

    tokenizer = tokenizer_of(source)
    change = RoiChange(request.threshold, request.upscale)
    policy = None if source.spec.rpn is None else change.applied_to(source.policy.roi)
    return [
        Asked(
            open_image(request.images / question.image),
            prompt_of(source.spec, tokenizer, question.text),
            policy,
            request.max_new_tokens,
        )
        for question in questions
    ]


# What was found ------------------------------------------------------------------------------------------------------


def _worth_keeping(costs: Sequence[Cost]) -> tuple[str, ...]:
    """Parts that are worth keeping. The vision tower is left out: it never gets fewer than 8 bits."""
    fine = {
        cost.part
        for cost in costs
        if cost.choice.startswith("int4")
        and (cost.roi_cosine is None or cost.roi_cosine >= KEEP_COSINE)
        and cost.same_answer >= KEEP_ANSWERS
    }
    four_bits = dict.fromkeys(cost.part for cost in costs if cost.choice.startswith("int4"))
    return tuple(part for part in four_bits if part not in fine and part != "vision" and " " not in part)


def _write_report(folder: Path, costs: Sequence[Cost]) -> None:
    import json

    from sdrpn.calibration.sensitivity_picture import draw_costs
    from sdrpn.host.atomic import replacing_directory
    from sdrpn.reports.table_page import Table, page_text

    page = page_text(folder / "sensitivity.md", "What rounding costs", [Table("", COLUMNS, cost_rows(costs))])
    with replacing_directory(folder) as work:
        text = json.dumps([dataclasses.asdict(cost) for cost in costs], indent=1)
        (work / "sensitivity.json").write_text(f"{text}\n", encoding="utf-8")
        (work / "sensitivity.md").write_text(page, encoding="utf-8")
        draw_costs(costs).save(work / "sensitivity.png")
