"""`sdrpn export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrpn.bundle.numerics import CACHE_FORMS, DIALECT_NAMES, PRECISIONS
from sdrpn.cli.arguments import add_fit_argument, positive_int
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Manifest
    from sdrpn.export import ExportOptions
    from sdrpn.export.quantized_weights import Calibration

HELP = "write a checkpoint as a bundle of ONNX graphs"
DESCRIPTION = """\
Write a checkpoint as a bundle: a folder with a manifest, ONNX graphs, weights and a tokenizer, which every other verb
works on.

CHECKPOINT is a folder in one of these layouts: an official SD-RPN checkpoint, an original LLaVA-1.5 checkpoint
(model_type llava_llama), or a Hugging Face one (llava-hf). Without an RPN the bundle answers as plain LLaVA.
It may also be a LoRA, as PEFT or LLaVA saves it, or LLaVA's mm_projector.bin, with its --base: docs/checkpoints.md.
A bundle may hold several variants (a dialect in a precision): export again with the same --out to add one; weights
that are equal are stored once. An interrupted export leaves the folder as it was.

  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision fp16
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision fp16 --dialect primitive   # for JetPack 6 as well
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision int4
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision int4 --kv-cache int8   # for longer contexts
  sdrpn export llava-lora --base vicuna-7b-v1.5 --out bundle --precision fp16
  sdrpn export llava-llama-2-13b --out bundle --template llava_llama_2   # asked as its training did
  sdrpn export my-llava --out bundle --precision int4 --method gptq --calibrate qa.jsonl --images images
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder of the checkpoint")
    parser.add_argument(
        "--out",
        metavar="BUNDLE",
        type=Path,
        required=True,
        help="folder to write: new, empty, or a bundle of the same checkpoint",
    )
    parser.add_argument(
        "--vision-tower",
        metavar="DIR",
        type=Path,
        help="CLIP vision tower of an original LLaVA checkpoint (default: where its config says, or the local cache)",
    )
    parser.add_argument(
        "--rpn", metavar="FILE", type=Path, help="rpn.safetensors, with rpn.json beside it, to use with this checkpoint"
    )
    parser.add_argument(
        "--base",
        metavar="DIR",
        type=Path,
        help="checkpoint to take from what CHECKPOINT lacks: upper layers, or all that a LoRA or a projector alone was "
        "trained on",
    )
    parser.add_argument(
        "--projector",
        metavar="FILE",
        type=Path,
        help="mm_projector.bin as LLaVA saves it, or its folder, in place of CHECKPOINT's projector",
    )
    add_fit_argument(parser)
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="of the matrices; the residual stream and the norms are always fp32. "
        + "; ".join(f"{row.name}: {row.about}" for row in PRECISIONS.values())
        + " (default: fp32)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="how questions are put to the model: a conversation of LLaVA's training code by name (vicuna_v1, "
        "llava_v1, llava_llama_2, mistral_instruct, chatml_direct, mpt, plain, ...), or a file with a Jinja chat "
        "template (default: the checkpoint's own)",
    )
    _add_quantization(parser.add_argument_group("with a precision below fp16"))
    parser.add_argument(
        "--dialect",
        choices=DIALECT_NAMES,
        default="fused",
        help="fused: opset 24 with attention and cache operators; primitive: opset 20 at most, for TensorRT before "
        "10.15, as on JetPack 6 (default: fused)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=tuple(CACHE_FORMS),
        help="keep keys and values in 8 bits, with a scale for every row and head: about half of fp16 and a quarter of "
        "fp32; a variant of its own. fp8 needs --dialect primitive, as do engines (default: as the graphs compute)",
    )
    parser.add_argument(
        "--max-context",
        metavar="N",
        type=positive_int,
        help="most tokens of prompt and answer together (default: the checkpoint's own limit)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where an export of the same checkpoint with --resume was broken off; its finished weight files "
        "were kept, hidden, beside BUNDLE",
    )
    parser.add_argument("--json", action="store_true", help="print the manifest's summary as JSON")
    add_model_options(parser, "checkpoint", "base", "vision_tower")


def _add_quantization(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--block",
        metavar="N",
        type=int,
        choices=(16, 32, 64, 128),
        help="inputs that share a scale: 16, 32, 64 or 128; fewer are more exact and larger (default: 32)",
    )
    group.add_argument(
        "--method",
        choices=("rtn", "hqq", "gptq"),
        help="rtn: round to nearest; hqq: also fit the scales, which takes some thirty times as long; gptq: make up "
        "for each rounding after what the matrices multiply on --calibrate's questions, int4 only (default: rtn)",
    )
    group.add_argument(
        "--keep",
        metavar="A,B",
        type=lambda text: tuple(filter(None, text.split(","))) if text != "none" else (),
        help="leave these in fp16: lm_head, rpn, vision, layers.N, or none; a vision tower that is not kept gets 8 "
        "bits (default: lm_head,rpn,vision)",
    )
    group.add_argument(
        "--int8",
        metavar="A,B",
        type=lambda text: tuple(filter(None, text.split(","))),
        help="with --precision int4: give these 8 bits, e.g. lm_head, which a CPU computes with in fp32 otherwise",
    )
    group.add_argument(
        "--calibrate",
        metavar="QA.jsonl",
        type=Path,
        help="for --method gptq and --precision nvfp4, and for --precision fp8 where inputs shall be rounded, too: one "
        "JSON object a line: image, question, and answer where there is one; a few dozen are enough. Needs the [train] "
        "extra",
    )
    group.add_argument("--images", metavar="DIR", type=Path, help="with --calibrate: folder of the images")
    group.add_argument("--device", metavar="NAME", help="with --calibrate: cpu, cuda, cuda:1, ... (default: cpu)")


def run(args: argparse.Namespace) -> int:
    """Export, and say what was written."""
    from sdrpn.cli.first_look import look_at_checkpoint
    from sdrpn.cli.output import print_json, print_text
    from sdrpn.cli.output_file import report_written, require_output_folder
    from sdrpn.cli.progress import progress
    from sdrpn.host.libraries import importing_extra
    from sdrpn.host.sizes import text_from_bytes

    require_output_folder("--out", args.out)
    with importing_extra("export", "sdrpn export"):
        from sdrpn.checkpoint import named_template
    args.template = None if args.template is None else named_template(args.template)
    look_at_checkpoint(args, "export", template=args.template or _template_there(args.out))
    with importing_extra("export", "sdrpn export"):
        from sdrpn.export import export_bundle

    # What does not go together is told before anybody gathers questions or waits for a calibration.
    _options(args, "to be made" if _must_calibrate(args) else None)
    notes: list[str] = []
    with _calibration(args) as calibration:
        options = _options(args, None if calibration is None else calibration.digest)
        with progress("export") as advance:
            manifest = export_bundle(
                args.checkpoint,
                args.out,
                options,
                vision_tower=args.vision_tower,
                rpn=args.rpn,
                base=args.base,
                projector=args.projector,
                fit=args.fit,
                resume=args.resume,
                calibration=calibration,
                template=args.template,
                progress=advance,
                note=notes.append,
            )
    variant = manifest.variants[options.variant]
    written = {file for name in options.variants for file in manifest.variants[name].files}
    size_bytes = sum(manifest.files[name].size_bytes for name in written)
    if args.json:
        print_json(
            {
                "bundle": args.out,
                "variant": variant.name,
                "variants": sorted(manifest.variants),
                "size_bytes": size_bytes,
                "max_context": manifest.max_context,
                "rpn": manifest.spec.rpn is not None,
                "tokenizer": manifest.tokenizer is not None,
                "prompt": manifest.spec.prompt.template,
                "source": dict(manifest.source),
                "notes": notes,
            }
        )
        return 0
    names = " and ".join(options.variants)
    print_text(f"{args.out}: {names}, {text_from_bytes(size_bytes)} in {len(variant.graphs)} graphs")
    for note in notes:
        print_text(note)
    if manifest.spec.rpn is None:
        print_text("no RPN in this checkpoint: the bundle answers as plain LLaVA (--no-roi); see --rpn")
    if manifest.tokenizer is not None:
        print_text(f"questions are put by {_way_of_asking(manifest)}")
    else:
        print_text("no tokenizer in this checkpoint: the bundle answers by token ids only, not through `sdrpn ask`")
    report_written(args.out, "bundle")
    return 0


def _template_there(out: Path) -> str | None:
    """How the bundle that a variant is added to is asked, where that was given."""
    from sdrpn.bundle.bundle import MANIFEST_NAME, open_bundle

    return open_bundle(out).manifest.given_template if (out / MANIFEST_NAME).is_file() else None


def _way_of_asking(manifest: Manifest) -> str:
    from sdrpn.text.conversations import CONVERSATIONS

    template = manifest.spec.prompt.template
    origin = "given" if manifest.given_template is not None else "of the checkpoint"
    return f"the prompt {template}" if template in CONVERSATIONS else f"the chat template {origin}"


def _options(args: argparse.Namespace, calibration: str | None) -> ExportOptions:
    from sdrpn.export import ExportOptions

    return ExportOptions(
        args.precision,
        args.dialect,
        args.max_context,
        kv_cache=args.kv_cache,
        calibration=calibration,
        **_quantization(args),
    )


def _must_calibrate(args: argparse.Namespace) -> bool:
    return bool(args.method == "gptq" or PRECISIONS[args.precision].calibration == "required")


@contextmanager
def _calibration(args: argparse.Namespace) -> Iterator[Calibration | None]:
    """What --calibrate asks for. Raises BadInput where the arguments about it do not go together."""
    from sdrpn.cli.progress import progress
    from sdrpn.errors import BadInput
    from sdrpn.host.libraries import importing_extra

    given = args.calibrate or args.images or args.device
    needed = _must_calibrate(args)
    if given and not needed and PRECISIONS[args.precision].calibration == "none":
        taking = " and ".join(row.name for row in PRECISIONS.values() if row.calibration != "none")
        raise BadInput(f"--calibrate, --images and --device are for --method gptq and for --precision {taking}")
    if not given and not needed:
        yield None
        return
    if args.calibrate is None or args.images is None:
        raise BadInput("a calibration needs questions and their pictures: --calibrate QA.jsonl --images DIR")
    with importing_extra("train", "sdrpn export --calibrate"):
        from sdrpn.calibration import CalibrationPrompts, LayerInputs
    from sdrpn.checkpoint import open_checkpoint
    from sdrpn.cli.teacher import device_named, tokenizer_of
    from sdrpn.labels.questions import read_questions

    device, questions = device_named(args.device or "cpu"), tuple(read_questions(args.calibrate))
    with open_checkpoint(
        args.checkpoint,
        vision_tower=args.vision_tower,
        rpn=args.rpn,
        base=args.base,
        projector=args.projector,
        fit=args.fit,
        template=args.template,
    ) as source:
        prompts = CalibrationPrompts(questions, args.images, tokenizer_of(source))
        with progress("calibrate", "layers") as advance:
            embeds = prompts.embeds(source)
            moments = args.method == "gptq"
            yield LayerInputs(source, embeds, prompts.digest, device=device, moments=moments, advance=advance)


def _quantization(args: argparse.Namespace) -> dict[str, Any]:
    """The options that only some precisions have. Raises BadInput where they are given without."""
    from sdrpn.errors import BadInput

    names = ("block", "method", "keep", "int8")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    numbers = PRECISIONS[args.precision]
    misplaced = [name for name in given if not (numbers.is_quantized and name == "keep")]
    if misplaced and numbers.weights != "integers":
        raise BadInput(f"--{misplaced[0]} needs --precision int8 or int4; got --precision {args.precision}")
    return given
