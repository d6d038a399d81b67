"""`sdrpn export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sdrpn.cli.arguments import positive_int

HELP = "write a checkpoint as a bundle of ONNX graphs"
DESCRIPTION = """\
Write a checkpoint as a bundle: a folder with a manifest, ONNX graphs, weights and a tokenizer, which every other verb
works on.

CHECKPOINT is a folder in one of these layouts: an official SD-RPN checkpoint, an original LLaVA-1.5 checkpoint
(model_type llava_llama), or a Hugging Face one (llava-hf). Without an RPN the bundle answers as plain LLaVA.
A bundle may hold several variants (a dialect in a precision): export again with the same --out to add one; weights
that are equal are stored once. An interrupted export leaves the folder as it was.

  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision fp16
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision fp16 --dialect primitive   # for JetPack 6 as well
  sdrpn export llava-v1.5-7b-roi-K15T3 --out bundle --precision int4
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
        "--base", metavar="DIR", type=Path, help="checkpoint to take upper layers from that CHECKPOINT lacks"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "int4"),
        default="fp32",
        help="of the matrices; the residual stream and the norms are always fp32. int8 and int4 store integers "
        "in blocks and write two variants on the same weights, one for GPUs and one for CPUs (default: fp32)",
    )
    _add_quantization(parser.add_argument_group("with --precision int8 or int4"))
    parser.add_argument(
        "--dialect",
        choices=("fused", "primitive"),
        default="fused",
        help="fused: opset 24 with attention and cache operators; primitive: opset 20 at most, for TensorRT before "
        "10.15, as on JetPack 6 (default: fused)",
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
        choices=("rtn", "hqq"),
        help="rtn: round to nearest; hqq: also fit the scales, which takes some thirty times as long (default: rtn)",
    )
    group.add_argument(
        "--keep",
        metavar="A,B",
        type=lambda text: tuple(filter(None, text.split(","))) if text != "none" else (),
        help="leave these in fp16: lm_head, rpn, vision, layers.N, or none; a vision tower that is not kept gets 8 "
        "bits (default: lm_head,rpn,vision)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and say what was written."""
    from sdrpn.cli.output import print_json, print_text
    from sdrpn.cli.progress import progress
    from sdrpn.libraries import importing_extra
    from sdrpn.sizes import text_from_bytes

    with importing_extra("export", "sdrpn export"):
        from sdrpn.export import ExportOptions, export_bundle

    options = ExportOptions(args.precision, args.dialect, args.max_context, **_quantization(args))
    with progress("export") as advance:
        manifest = export_bundle(
            args.checkpoint,
            args.out,
            options,
            vision_tower=args.vision_tower,
            rpn=args.rpn,
            base=args.base,
            resume=args.resume,
            progress=advance,
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
                "source": dict(manifest.source),
            }
        )
        return 0
    names = " and ".join(options.variants)
    print_text(f"{args.out}: {names}, {text_from_bytes(size_bytes)} in {len(variant.graphs)} graphs")
    if manifest.spec.rpn is None:
        print_text("no RPN in this checkpoint: the bundle answers as plain LLaVA (--no-roi); see --rpn")
    if manifest.tokenizer is None:
        print_text("no tokenizer in this checkpoint: the bundle answers by token ids only, not through `sdrpn ask`")
    return 0


def _quantization(args: argparse.Namespace) -> dict[str, Any]:
    """The options that only integers have. Raises BadInput where they are given without."""
    from sdrpn.errors import BadInput

    given = {name: getattr(args, name) for name in ("block", "method", "keep") if getattr(args, name) is not None}
    if given and args.precision not in ("int8", "int4"):
        raise BadInput(f"--{next(iter(given))} needs --precision int8 or int4; got --precision {args.precision}")
    return given
