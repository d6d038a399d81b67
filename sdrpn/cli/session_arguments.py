"""Arguments of verbs that open a session: which library runs a bundle, and on what. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BACKENDS, add_threads_argument, device_number

if TYPE_CHECKING:
    from sdrpn.workflows.question import EngineOptions

__all__ = ["add_where", "engine_options"]

_NOWHERE = "none"
DECODES = ("exact", "fast", "gpu")


def add_where(group: argparse._ArgumentGroup) -> None:
    """Declare where a session runs."""
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
    add_threads_argument(group)
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


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """How engines are run."""
    from sdrpn.workflows.question import EngineOptions

    kept = args.runtime_cache
    return EngineOptions(
        runtime_cache_dir=None if kept in (None, _NOWHERE) else Path(kept),
        keep_runtime_cache=kept != _NOWHERE,
        cuda_graph=not args.no_cuda_graph,
        device=args.device or 0,
    )


def _backend(text: str) -> str:
    if text in BACKENDS:
        return text
    hint = " (that one is gone: use tensorrt with the engines of `sdrpn build`)" if text.endswith("-tensorrt") else ""
    raise argparse.ArgumentTypeError(f"{text!r} is unknown; expected one of {', '.join(BACKENDS)}{hint}")
