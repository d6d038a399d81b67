"""Arguments of verbs that open a session: which library runs a bundle, and where. Imports no library."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdrpn.host.suggestion import unknown_choice
from sdrpn.terminal.argument_types import device_number_or_name, whole_number
from sdrpn.terminal.arguments import BACKENDS, add_former_name, add_threads_argument

__all__ = ["DECODE_COPY", "JPEG_MODES", "NOWHERE", "add_decode_copy_argument", "add_where"]

NOWHERE = "none"
DECODE_COPY = {"auto": None, "on": True, "off": False}  # what the option says -> the argument of Session.open
JPEG_MODES = ("exact", "fast", "gpu")


def add_where(group: argparse._ArgumentGroup, *, jpeg: bool = True) -> None:
    """Declare how and where a session runs."""
    group.add_argument(
        "--backend",
        metavar="{" + ",".join(BACKENDS) + "}",
        type=_backend,
        default=BACKENDS[0],
        help="inference library; tensorrt: runs the engines of `sdrpn build` (default: auto, which is tensorrt "
        "where engines fit this machine's GPU, else openvino where it is installed and the model is not small, else "
        "onnxruntime)",
    )
    group.add_argument("--target", metavar="NAME", help="run the engines of this target (default: the first that fit)")
    group.add_argument(
        "--variant",
        metavar="NAME",
        help="dialect-precision, e.g. fused-fp16 (default: the one that suits the library best)",
    )
    group.add_argument(
        "--device",
        metavar="N",
        type=device_number_or_name,
        help="which GPU, as CUDA numbers them (default: 0); or a device of OpenVINO: CPU, GPU, GPU.1, NPU or AUTO",
    )
    group.add_argument(
        "--no-cuda-graph", action="store_true", help="with engines: enqueue the parts of a decode step one by one"
    )
    group.add_argument(
        "--runtime-cache",
        metavar="FOLDER",
        type=_cache_folder,
        help="where TensorRT-RTX keeps what it compiles on this GPU for later starts; none: do not keep it (default: "
        "~/.cache/sdrpn)",
    )
    add_threads_argument(group)
    if jpeg:
        _add_jpeg(group)
    group.add_argument(
        "--no-verify", action="store_true", help="do not check the digests of large files (faster start)"
    )
    group.add_argument(
        "--no-optimized", action="store_true", help="run the bundle's own graphs, not those of `sdrpn optimize`"
    )
    group.add_argument(
        "--rebuild-optimized",
        action="store_true",
        help="where the graphs of `sdrpn optimize` are for another machine, another version of the library or another "
        "export, make them again first, with the options that they were made with; where that fails, say why and run "
        "the bundle's own",
    )
    group.add_argument(
        "--require-signed",
        metavar="KEY",
        type=Path,
        action="append",
        default=[],
        help="public key (PEM) that must have signed the release; can be given several times: one of them",
    )
    group.add_argument(
        "--accurate",
        action="store_true",
        help="on a CPU: multiply quantised matrices with floats, not with activations in blocks of 8 bits (slower)",
    )
    group.add_argument(
        "--activation-block",
        metavar="N",
        type=whole_number,
        help="with OpenVINO: how many activations share a scale where they meet quantised matrices; 0: they stay "
        "floats (default: as many as weights do)",
    )
    group.add_argument(
        "--kv-cache",
        choices=("int8",),
        help="with OpenVINO on a CPU: caches of trunk and tail in 8 bits (default: as the graphs declare them)",
    )
    add_decode_copy_argument(group)
    group.add_argument(
        "--vision-type",
        choices=("bf16",),
        help="with OpenVINO on a CPU that has instructions for it: compute the vision tower in bfloat16, as the "
        "official evaluations do (default: in fp32)",
    )
    group.add_argument("--no-memory-check", action="store_true", help="start even if the estimated memory does not fit")


def _add_jpeg(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--jpeg",
        choices=JPEG_MODES,
        default=JPEG_MODES[0],
        help="how JPEG files are decoded. fast: at a fraction of the size for the first look (DCT scaling), quicker "
        f"but not exact; gpu: with nvImageCodec (default: {JPEG_MODES[0]})",
    )
    add_former_name(group, "--decode", "--jpeg", choices=JPEG_MODES)


def _cache_folder(text: str) -> Path | str:
    return NOWHERE if text == NOWHERE else Path(text)


def _backend(text: str) -> str:
    if text in BACKENDS:
        return text
    hint = " (it was removed: use tensorrt with the engines of `sdrpn build`)" if text.endswith("-tensorrt") else ""
    raise argparse.ArgumentTypeError(unknown_choice(text, BACKENDS) + hint)


def add_decode_copy_argument(group: argparse._ActionsContainer) -> None:
    """Declare whether decode steps have their matrices once more; see `DECODE_COPY`."""
    group.add_argument(
        "--decode-copy",
        choices=tuple(DECODE_COPY),
        default="auto",
        help="with OpenVINO on a CPU: keep the matrices once more in memory, in the form that a decode step reads "
        "fastest (default: auto, where those of a graph take at most 0.5 GB)",
    )
