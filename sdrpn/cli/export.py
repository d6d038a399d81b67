"""`sdrpn export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.bundle.numerics import CACHE_FORMS, DIALECT_NAMES, PRECISIONS
from sdrpn.cli.requests import checkpoint_parts
from sdrpn.terminal.argument_types import number_between, positive_int, whole_number
from sdrpn.terminal.arguments import add_fit_argument, add_threads_argument, filled
from sdrpn.terminal.checkpoint_arguments import add_checkpoint_argument, add_part_arguments

if TYPE_CHECKING:
    from sdrpn.workflows.export import CalibrationData

HELP = "write a checkpoint as a bundle of ONNX graphs"
DESCRIPTION = """\
Write a checkpoint as a bundle: a folder with a manifest, ONNX graphs, weights and a tokenizer, which every other verb
works on.

CHECKPOINT is a folder in one of these layouts: an official SD-RPN checkpoint, an original LLaVA-1.5 checkpoint
(model_type llava_llama), a Hugging Face one (llava-hf), or Qwen2.5-VL or Qwen3-VL with an RPN of SD-RPN or Q-Zoom, or
bare. Without an RPN the bundle answers as the plain model.
It can also be a LoRA as PEFT or LLaVA saves it, or LLaVA's mm_projector.bin, with --base: see docs/checkpoints.md.
A bundle can hold several variants (a dialect in a precision): export again with the same --out to add one; equal
weights are stored once. An interrupted export leaves the folder as it was.

  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision fp16
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision fp16 --dialect primitive   # for JetPack 6 as well
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision int4
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision int4 --kv-cache int8   # for longer contexts
  sdrpn export llava-lora --base vicuna-7b-v1.5 --out bundle --precision fp16
  sdrpn export llava-llama-2-13b --out bundle --template llava_llama_2   # with the prompt of its training
  sdrpn export my-llava --out bundle --precision int4 --method gptq --calibrate qa.jsonl --images images
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_checkpoint_argument(parser)
    parser.add_argument(
        "--out",
        metavar="BUNDLE",
        type=Path,
        required=True,
        help="folder to write: new, empty, or a bundle of the same checkpoint",
    )
    add_part_arguments(parser, None)
    add_fit_argument(parser)
    parser.add_argument(
        "--scheme",
        choices=("auto", "sd-rpn", "q-zoom"),
        default="auto",
        help="whose second pass the RPN of a Qwen2.5-VL is for; auto: as config.json and the names of tensors say "
        "(default: auto)",
    )
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="precision of the matrices; the residual stream and the norms are always fp32. "
        + "; ".join(f"{row.name}: {row.about}" for row in PRECISIONS.values())
        + " (default: fp32)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="prompt template: a conversation of LLaVA's training code by name (vicuna_v1, "
        "llava_v1, llava_llama_2, mistral_instruct, chatml_direct, mpt, plain, ...), or a file with a Jinja chat "
        "template (default: the checkpoint's own)",
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=number_between(-1, 1),
        help="cells of the RoI map above this are looked at again, unless a question says otherwise (default: the one "
        "that the RPN's training chose, else the official one)",
    )
    _add_quantization(parser.add_argument_group("with a precision below fp16"))
    parser.add_argument(
        "--dialect",
        choices=DIALECT_NAMES,
        default="fused",
        help="fused: opset 24 with attention and cache operators; primitive: opset 20 or lower, for TensorRT before "
        "10.15, as on JetPack 6 (default: fused)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=tuple(CACHE_FORMS),
        help="KV cache in 8 bits, with a scale per row and head: about half the size of fp16 and a quarter of fp32; a "
        "separate variant. fp8 needs --dialect primitive, as do engines (default: in the type that graphs compute in)",
    )
    parser.add_argument(
        "--max-context",
        metavar="N",
        type=positive_int,
        help="maximum tokens of prompt and answer together (default: the checkpoint's limit)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an export of the same checkpoint that was started with --resume and interrupted; its finished "
        "weight files were kept in a hidden folder beside BUNDLE",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")


def _add_quantization(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--block",
        metavar="N",
        type=whole_number,
        choices=(16, 32, 64, 128),
        help="inputs that share a scale: 16, 32, 64 or 128; smaller blocks are more accurate and take more space "
        "(default: 32)",
    )
    group.add_argument(
        "--method",
        choices=("rtn", "hqq", "gptq"),
        help="rtn: round to nearest; hqq: also fit the scales, about thirty times slower; gptq: compensate each "
        "rounding error, using the inputs of the matrices on --calibrate's questions, int4 only (default: rtn)",
    )
    group.add_argument(
        "--keep",
        metavar="A,B",
        type=lambda text: tuple(filter(None, text.split(","))) if text != "none" else (),
        help="parts to keep in fp16: lm_head, rpn, vision, layers.N, or none; a vision tower that is not kept gets 8 "
        "bits (default: lm_head,rpn,vision)",
    )
    group.add_argument(
        "--int8",
        metavar="A,B",
        type=lambda text: tuple(filter(None, text.split(","))),
        help="with --precision int4: parts in 8 bits, e.g. lm_head, which a CPU otherwise computes in fp32",
    )
    group.add_argument(
        "--calibrate",
        metavar="QA.jsonl",
        type=Path,
        help="questions for --method gptq and --precision nvfp4, and for --precision fp8 to round inputs as well. JSON "
        "Lines: image, question, optionally answer; a few dozen are enough. Needs the [train] extra",
    )
    group.add_argument("--images", metavar="DIR", type=Path, help="with --calibrate: folder of the images")
    group.add_argument("--device", metavar="NAME", help="with --calibrate: cpu, cuda, cuda:1, ... (default: cpu)")
    add_threads_argument(group)


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.export import ExportRequest, export
    from sdrpn.workflows.export_text import export_text

    require_output_folder("--out", args.out)
    request = filled(ExportRequest, args, checkpoint=checkpoint_parts(args), calibration=_calibration(args))
    result = export(request, progress)
    if args.json:
        print_json(result.to_json())
    else:
        print_report(export_text(result))
        report_written(args.out, "bundle")
    return 0


def _calibration(args: argparse.Namespace) -> CalibrationData | None:
    """The calibration of --calibrate. Raises BadInput if its arguments contradict each other."""
    from sdrpn.errors import BadInput
    from sdrpn.workflows.export import CalibrationData

    given = args.calibrate or args.images or args.device or args.threads
    kinds = {name: numbers.calibration for name, numbers in PRECISIONS.items()}
    needed = args.method == "gptq" or kinds[args.precision] == "required"
    if given and not needed and kinds[args.precision] == "none":
        taking = " and ".join(name for name, kind in kinds.items() if kind != "none")
        raise BadInput(
            f"--calibrate, --images, --device and --threads are for --method gptq and for --precision {taking}"
        )
    if not given and not needed:
        return None
    if args.calibrate is None or args.images is None:
        raise BadInput("a calibration needs questions and their images: --calibrate QA.jsonl --images DIR")
    return CalibrationData(args.calibrate, args.images, args.device or "cpu", args.threads)
