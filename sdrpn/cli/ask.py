"""`sdrpn ask`: one question about one image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import (
    BUNDLE_HELP,
    bundle_folder,
    device_number,
    non_negative_number,
    number_between,
    positive_int,
    whole_number,
)
from sdrpn.cli.model_folders import add_model_options
from sdrpn.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdrpn.method.geometry import Fit
    from sdrpn.method.roi import RoiPolicy
    from sdrpn.runtime import Answer, EngineOptions

HELP = "ask a question about an image"
DESCRIPTION = """\
Ask a question about an image: look at the whole image once, find the region that the question is about, crop it from
the full resolution, and answer with the crop's tokens added.

  sdrpn ask bundle street.jpg "What does the sign say?" --overlay looked-at.png
  curl -s http://camera/still.jpg | sdrpn ask bundle - "Is the door open?"
  sdrpn ask bundle street.jpg -- "-- a question that begins with a dash"
"""

# The names that Session.open takes.
BACKENDS = ("auto", "onnxruntime", "onnxruntime-cuda", "tensorrt")
_NOWHERE = "none"
DECODES = ("exact", "fast", "gpu")
# The name of standard input, and how much of it is read: more than any picture within the limit of pixels takes.
STDIN = Path("-")
_MOST_STDIN_BYTES = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument(
        "image", metavar="IMAGE", type=Path, help="picture in any format that Pillow reads; -: from standard input"
    )
    parser.add_argument("question", metavar="QUESTION", help="what to ask, in quotes")
    _add_where(parser.add_argument_group("where it runs"))
    _add_region(parser.add_argument_group("where it looks"))
    _add_answer(parser.add_argument_group("how it answers"))
    _add_output(parser.add_argument_group("what it prints"))
    add_model_options(parser, "bundle")


def _add_where(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--backend",
        metavar="{" + ",".join(BACKENDS) + "}",
        type=_backend,
        default=BACKENDS[0],
        help="library that runs the graphs; tensorrt: the engines of `sdrpn build` (default: auto, which is tensorrt "
        "where engines fit this machine's GPU, else onnxruntime)",
    )
    group.add_argument("--target", metavar="NAME", help="run the engines of this target (default: the first that fit)")
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="dialect-precision, e.g. fused-fp16 (default: the one that suits the library best)",
    )
    group.add_argument("--device", metavar="N", type=device_number, help="which GPU, as CUDA numbers them (default: 0)")
    group.add_argument(
        "--no-cuda-graph", action="store_true", help="with engines: enqueue every part of a decode step by itself"
    )
    group.add_argument(
        "--runtime-cache",
        metavar="FOLDER",
        help="where TensorRT-RTX keeps what it compiles on this GPU for the next start; none: nowhere (default: "
        "~/.cache/sdrpn)",
    )
    group.add_argument("--threads", metavar="N", type=positive_int, help="CPU threads (default: one per core)")
    group.add_argument(
        "--decode",
        choices=DECODES,
        default=DECODES[0],
        help="fast: take the first look at a JPEG file from DCT scaling, quicker but not exact; gpu: decode it with "
        f"nvImageCodec (default: {DECODES[0]})",
    )
    group.add_argument(
        "--no-verify", action="store_true", help="do not check the digests of large files: starts faster"
    )
    group.add_argument(
        "--no-optimized", action="store_true", help="run the bundle's own graphs, not those of `sdrpn optimize`"
    )
    group.add_argument("--no-memory-check", action="store_true", help="start even if the estimate says it cannot fit")


def _add_region(group: argparse._ArgumentGroup) -> None:
    # The defaults below are those of RoiPolicy, which the published evaluation of TextVQA uses. They are not imported
    # from there because that would load NumPy for --help.
    group.add_argument("--no-roi", action="store_true", help="do not look twice: plain LLaVA")
    group.add_argument(
        "--threshold",
        metavar="X",
        type=number_between(-1, 1),
        default=0.15,
        help="a cell of the RoI map counts above this; negative: relative to the highest raw score (default: 0.15)",
    )
    group.add_argument(
        "--upscale",
        choices=("mask", "bbox"),
        default="mask",
        help="mask: one crop around all regions and only the cells that count; bbox: up to two crops, all cells "
        "(default: mask)",
    )
    group.add_argument(
        "--max-ratio",
        metavar="R",
        type=non_negative_number,
        help="with --upscale bbox: give a region at most R times as many tokens a side as it has cells (default: no "
        "limit)",
    )


def _add_answer(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=64, help="longest answer (default: 64)"
    )
    group.add_argument(
        "--temperature",
        metavar="X",
        type=non_negative_number,
        default=0.0,
        help="0: always the likeliest token; higher: more varied (default: 0)",
    )
    group.add_argument(
        "--top-p",
        metavar="P",
        type=number_between(0, 1),
        default=1.0,
        help="with --temperature: draw from the likeliest tokens that hold this share of the probability (default: 1)",
    )
    group.add_argument(
        "--seed", metavar="N", type=whole_number, default=0, help="with --temperature: which draw (default: 0)"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--overlay",
        metavar="OUT.png",
        type=Path,
        help="also draw the heat map and the boxes over the image, with the crop beside it, as a PNG or JPEG file",
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument("--stream", action="store_true", help="print the answer as it is made")
    form.add_argument("--json", action="store_true", help="print answer, token ids, boxes and timings as JSON")


def run(args: argparse.Namespace) -> int:
    """Answer, and draw where it looked."""
    from sdrpn.cli.output import print_json, print_text, warn
    from sdrpn.runtime import Sampling, Session
    from sdrpn.runtime.pictures.picture import open_picture

    # Whatever can be refused is refused before the graphs are loaded, which takes a minute for a large model.
    sampling = Sampling(args.temperature, args.top_p, args.seed)
    policy = _policy(args)
    _check_overlay(args)
    _require_tokenizer(args.bundle)
    if args.backend in ("auto", "onnxruntime") and not args.no_memory_check:
        _require_memory(args)
    source = _image_source(args.image)
    picture = open_picture(source, decode=args.decode, threads=args.threads)
    if not args.debug:
        _silence_onnxruntime()
    with Session.open(
        args.bundle,
        backend=args.backend,
        threads=args.threads,
        variant=args.variant,
        target=args.target,
        device=args.device,
        engine_options=_engine_options(args),
        optimized=not args.no_optimized,
        verify=not args.no_verify,
    ) as session:
        note = session.backend_note
        if note is not None:
            warn(note)
        if policy is not None and session.spec.rpn is None:
            warn(f"{args.bundle} has no RPN: answering as plain LLaVA (--no-roi says so without this warning)")
            policy = None
        stream = session.stream(
            picture, args.question, roi=policy, max_new_tokens=args.max_new_tokens, sampling=sampling
        )
        if args.stream:
            _print_pieces(stream)
        answer, fit = stream.finish(), session.spec.vision.fit
        if session.backend_note != note:  # something was found while it answered
            warn(session.backend_note or "")
    if answer.note is not None:
        warn(answer.note)
    if args.json:
        print_json({**_as_json(answer), "overlay": args.overlay})
    elif not args.stream:
        print_text(answer.text)
    if args.overlay is not None:
        from sdrpn.cli.output_file import report_written
        from sdrpn.images.image import open_image

        # after the answer, which is not lost if this fails
        _write_overlay(open_image(source), args.overlay, answer, fit)
        if not args.json:
            report_written(args.overlay, "where it looked")
    return 0


def _backend(text: str) -> str:
    if text in BACKENDS:
        return text
    hint = " (that one is gone: use tensorrt with the engines of `sdrpn build`)" if text.endswith("-tensorrt") else ""
    raise argparse.ArgumentTypeError(f"{text!r} is unknown; expected one of {', '.join(BACKENDS)}{hint}")


def _engine_options(args: argparse.Namespace) -> EngineOptions:
    from sdrpn.runtime import EngineOptions

    kept = args.runtime_cache
    return EngineOptions(
        runtime_cache_dir=None if kept in (None, _NOWHERE) else Path(kept),
        keep_runtime_cache=kept != _NOWHERE,
        cuda_graph=not args.no_cuda_graph,
        device=args.device or 0,
    )


def _silence_onnxruntime() -> None:
    """What fails comes back as an exception and is told in one line; the library would print it as well."""
    with suppress(ImportError, AttributeError):  # a broken installation is told where it is needed
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # fatal only


def _policy(args: argparse.Namespace) -> RoiPolicy | None:
    from sdrpn.method.roi import RoiPolicy

    if args.max_ratio is not None and args.upscale != "bbox":
        raise BadInput(f"--max-ratio {args.max_ratio:g} needs --upscale bbox; got --upscale {args.upscale}")
    policy = RoiPolicy(args.threshold, args.upscale, args.max_ratio)
    return None if args.no_roi else policy


def _check_overlay(args: argparse.Namespace) -> None:
    from sdrpn.cli.output_file import PICTURES, require_output_file

    if args.overlay is None:
        return
    require_output_file("--overlay", args.overlay, tuple(PICTURES))
    if args.overlay.exists() and args.image.exists() and args.overlay.samefile(args.image):
        raise BadInput(f"--overlay {args.overlay} would replace the image that is asked about; name another file")


def _image_source(image: Path) -> Path | bytes:
    """A file, or what stands on standard input."""
    if image != STDIN:
        return image
    if sys.stdin is None or sys.stdin.isatty():
        raise BadInput(
            f"IMAGE is {STDIN} and no picture comes on standard input; pipe one: cat street.jpg | sdrpn ask BUNDLE - "
            f'"..."; a file of that name is ./{STDIN}'
        )
    data = sys.stdin.buffer.read(_MOST_STDIN_BYTES + 1)
    if len(data) > _MOST_STDIN_BYTES:
        raise BadInput(f"standard input has more than {_MOST_STDIN_BYTES:,} bytes; expected one picture")
    if not data:
        raise BadInput("standard input is empty (0 bytes); expected a picture")
    return data


def _require_tokenizer(bundle_path: Path) -> None:
    from sdrpn.bundle.bundle import open_bundle

    if open_bundle(bundle_path).manifest.tokenizer is None:
        raise BadInput(
            f"{bundle_path} has no tokenizer.json, and a question in words needs one: put tokenizer.json or "
            f"tokenizer.model beside the checkpoint's config.json and export it again"
        )


def _require_memory(args: argparse.Namespace) -> None:
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.bundle.memory import require_cpu_memory
    from sdrpn.host.machine import read_machine
    from sdrpn.runtime.select import mapped_weights_bytes, onnxruntime_variant

    machine = read_machine()
    if args.backend == "auto" and machine.gpus:  # engines may answer; where none fit, running out is told as it happens
        return
    bundle = open_bundle(args.bundle)
    variant = onnxruntime_variant(bundle, args.variant)
    mapped_bytes = None if args.no_optimized else mapped_weights_bytes(bundle, variant)
    require_cpu_memory(bundle, variant, machine.memory_available_bytes, mapped_bytes)


def _print_pieces(stream: Iterable[str]) -> None:
    from sdrpn.cli.output import print_piece

    for piece in stream:
        print_piece(piece)
    print_piece("\n")


def _write_overlay(image: Image, overlay_path: Path, answer: Answer, fit: Fit) -> None:
    from sdrpn.cli.output_file import save_picture
    from sdrpn.method.overlay import draw_overlay

    save_picture(draw_overlay(image, answer.roi_map, answer.boxes_xyxy_px, fit=fit), overlay_path)


def _as_json(answer: Answer) -> dict[str, object]:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "boxes_xyxy_px": answer.boxes_xyxy_px,
        "roi_token_count": answer.roi_token_count,
        "note": answer.note,
        "timings": answer.timings,
        "tokens": answer.tokens,
    }
