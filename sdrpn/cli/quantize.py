"""`sdrpn quantize`: what 8 and 4 bits cost, part by part.

The JSON form is a list of sdrpn.calibration.sensitivity.Cost: part, choice, weights, roi_cosine, roi_cosine_min,
box_iou, same_decision, same_answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.cli.arguments import number_between, positive_int
from sdrpn.cli.teacher import add_checkpoint_arguments, device_named, some_questions, tokenizer_of
from sdrpn.errors import BadInput

if TYPE_CHECKING:
    from sdrpn.calibration.sensitivity import Asked, Cost, Rounding
    from sdrpn.checkpoint import Checkpoint
    from sdrpn.export.quantization import Blocks

HELP = "measure what 8 and 4 bits cost, part by part"
DESCRIPTION = """\
Round one part of a checkpoint at a time (the vision tower, each layer of the LLM, the RPN, the head), leave the rest as
it is, and compare with the checkpoint itself: the RoI map's cosine, how far the boxes overlap, whether both crop or
neither does, and whether the answer is the same token for token. The last row rounds at once what `sdrpn export` would
round by default. Says what to --keep. Needs the [train] extra; all of it is done in PyTorch.

  sdrpn quantize CHECKPOINT --data qa.jsonl --images images --limit 32 --report report
  sdrpn quantize CHECKPOINT --data qa.jsonl --images images --choices int4-b32-rtn,int4-b128-hqq --parts rpn,layers.0
"""

CHOICES = "int8-b32-rtn,int4-b32-rtn,int4-b32-hqq"
# A part is worth keeping where rounding it alone does this to the mean cosine, or to this share of the answers.
KEEP_COSINE, KEEP_ANSWERS = 0.999, 0.98


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_checkpoint_arguments(parser)
    parser.add_argument("--rpn", metavar="FILE", type=Path, help="as for `sdrpn export`")
    parser.add_argument(
        "--data", metavar="QA.jsonl", type=Path, required=True, help="one JSON object a line: image, question"
    )
    parser.add_argument("--images", metavar="DIR", type=Path, required=True, help="folder of the images")
    parser.add_argument("--limit", metavar="N", type=positive_int, help="take the first N questions only")
    parser.add_argument(
        "--choices",
        metavar="A,B",
        default=CHOICES,
        help=f"ways to round, as names of weight files have them: intBITS-bBLOCK-METHOD (default: {CHOICES})",
    )
    parser.add_argument("--parts", metavar="A,B", help="of vision, layers.N, rpn, lm_head (default: all)")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=32, help="longest answer (default: 32)"
    )
    parser.add_argument(
        "--threshold", metavar="X", type=number_between(-1, 1), default=0.15, help="as for `sdrpn ask` (default: 0.15)"
    )
    parser.add_argument(
        "--upscale", choices=("mask", "bbox"), default="mask", help="as for `sdrpn ask` (default: mask)"
    )
    parser.add_argument(
        "--report", metavar="DIR", type=Path, help="also write sensitivity.json, .md and .png into this new folder"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and tell."""
    from sdrpn.cli.first_look import look_at_checkpoint
    from sdrpn.cli.output import print_json, print_table, print_text
    from sdrpn.cli.output_file import report_written, require_output_folder
    from sdrpn.cli.progress import progress
    from sdrpn.host.libraries import importing_extra

    require_output_folder("--report", args.report)
    choices, questions = _choices(args.choices), some_questions(args)
    _require_new(args.report)
    look_at_checkpoint(args, "train")
    with importing_extra("train", "sdrpn quantize"):
        from sdrpn.calibration.sensitivity import measure_costs, parts_of
        from sdrpn.model import model_from_checkpoint
        from sdrpn.model.dtypes import torch_dtype

    from sdrpn.checkpoint import open_checkpoint

    dtype = torch_dtype(args.precision)
    with open_checkpoint(
        args.checkpoint,
        vision_tower=args.vision_tower,
        rpn=args.rpn,
        base=args.base,
        projector=args.projector,
        fit=args.fit,
    ) as source:
        device = device_named(args.device)
        asked = _asked(args, source, questions)
        model = model_from_checkpoint(source, dtype).to(device)
    matrices = parts_of(model)
    parts = _parts(args.parts, list(matrices))
    for part in parts:
        _require_blocks(part, {matrix.in_features for matrix in matrices[part]}, choices)
    together = [] if args.parts is not None else [name for name in parts if name.startswith("layers.")]
    with progress("quantize", "answers") as advance:
        roundings = {name: _rounding(blocks) for name, blocks in choices.items()}
        costs = list(measure_costs(model, asked, roundings, parts, together=together, advance=advance))
    if args.report is not None:
        _write_report(args.report, costs)
    if args.json:
        print_json(costs)
        return 0
    print_table(_COLUMNS, _rows(costs), title=f"{len(asked)} questions; 1 is as good as unrounded")
    if args.report is not None:
        report_written(args.report, "figures and a picture")
    kept = _worth_keeping(costs)
    print_text(f"costly in 4 bits, worth keeping: --keep {','.join(kept) if kept else 'none'}")
    return 0


def _choices(text: str) -> dict[str, Blocks]:
    found = {name: _blocks(name) for name in dict.fromkeys(filter(None, text.split(",")))}
    if not found:
        raise BadInput(f"--choices {text}: there is no name; expected intBITS-bBLOCK-METHOD, such as int4-b32-rtn")
    return found


def _rounding(blocks: Blocks) -> Rounding:
    from sdrpn.export.quantization import dequantized, quantize

    return lambda matrix: dequantized(*quantize(matrix, blocks))


def _require_blocks(part: str, widths: Iterable[int], choices: Mapping[str, Blocks]) -> None:
    """Before anything is measured, which takes long. Raises BadInput where a choice cannot round a part."""
    for name, blocks in choices.items():
        misfit = [width for width in widths if width % blocks.size]
        if misfit:
            raise BadInput(
                f"--choices {name}: {part} has a matrix of {misfit[0]} inputs, which blocks of {blocks.size} do not "
                "divide; choose others, such as int4-b16-rtn, or other --parts"
            )


def _blocks(name: str) -> Blocks:
    """int4-b32-rtn. Raises BadInput for anything else."""
    import re

    from sdrpn.export.quantization import METHODS, Blocks

    found = re.fullmatch(r"int(4|8)-b(\d+)-(\w+)", name)
    if found is None:
        raise BadInput(f"--choices {name}: expected intBITS-bBLOCK-METHOD, such as int4-b32-rtn")
    if found[3] == "gptq" or found[3] not in METHODS:
        raise BadInput(f"--choices {name}: the method is {found[3]}; expected rtn or hqq")
    bits: Any = int(found[1])
    return Blocks(bits, int(found[2]), found[3])


def _parts(text: str | None, known: Sequence[str]) -> list[str]:
    if text is None:
        return list(known)
    names = list(filter(None, text.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise BadInput(f"--parts {text}: there is no {unknown[0] if unknown else 'name'}; expected {', '.join(known)}")
    return names


def _asked(args: argparse.Namespace, source: Checkpoint, questions: Sequence[Any]) -> list[Asked]:
    from sdrpn.calibration.sensitivity import Asked
    from sdrpn.images.image import open_image
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.text.prompt import build_prompt

    tokenizer = tokenizer_of(source)
    policy = None if source.spec.rpn is None else RoiPolicy(args.threshold, args.upscale)
    return [
        Asked(
            open_image(args.images / one.image),
            build_prompt(tokenizer, source.spec.prompt, one.text),
            policy,
            args.max_new_tokens,
        )
        for one in questions
    ]


def _worth_keeping(costs: Sequence[Cost]) -> list[str]:
    """Parts whose mildest choice of 4 bits costs too much; the vision tower is never rounded below 8."""
    fine = {
        cost.part
        for cost in costs
        if cost.choice.startswith("int4")
        and (cost.roi_cosine is None or cost.roi_cosine >= KEEP_COSINE)
        and cost.same_answer >= KEEP_ANSWERS
    }
    four_bits = dict.fromkeys(cost.part for cost in costs if cost.choice.startswith("int4"))
    return [part for part in four_bits if part not in fine and part != "vision" and " " not in part]


_COLUMNS = ("part", "choice", "weights", "RoI cosine", "least", "box IoU", "same decision", "same answer")


def _rows(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
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


def _require_new(folder: Path | None) -> None:
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--report {folder} exists and is not an empty folder; name a new one")


def _write_report(folder: Path, costs: Sequence[Cost]) -> None:
    import dataclasses
    import json

    from sdrpn.calibration.sensitivity_picture import draw_costs
    from sdrpn.host.atomic import replacing_directory
    from sdrpn.reports.table_page import Table, page_text

    page = page_text(folder / "sensitivity.md", "What rounding costs", [Table("", _COLUMNS, _rows(costs))])
    with replacing_directory(folder) as work:
        text = json.dumps([dataclasses.asdict(cost) for cost in costs], indent=1)
        (work / "sensitivity.json").write_text(f"{text}\n", encoding="utf-8")
        (work / "sensitivity.md").write_text(page, encoding="utf-8")
        draw_costs(costs).save(work / "sensitivity.png")
