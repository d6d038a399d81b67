"""`sdrpn optimize`: make a bundle's graphs ready for this machine's CPU, once.

The JSON form is sdrpn.bundle.optimized.OptimizedManifest, and folder, seconds, size_bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder, positive_int
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, Variant
    from sdrpn.bundle.optimized import OptimizedManifest

HELP = "make a bundle's graphs ready for this machine's CPU"
DESCRIPTION = """\
Let ONNX Runtime optimise a variant's graphs for this machine's CPU and keep the result in the bundle: `sdrpn ask` and
`sdrpn bench` take it from then on. Attention is done by ONNX Runtime's own operator, which costs by the context in use
and not by the length of the caches. Weights are saved as the kernels want them and mapped from the file: they are in
memory once, however many processes answer, and can be dropped when it is short. On disk they take two to three times
the bundle's own weights.

What is saved fits one version of ONNX Runtime on one kind of processor. Where another one answers, or after another
export, the bundle's own graphs are used, with a warning.

  sdrpn optimize bundle
  sdrpn optimize bundle --variant fused-int4-cpu
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument("--variant", metavar="NAME", help="default: the one that suits a CPU best")
    parser.add_argument(
        "--attention",
        choices=("group-query", "standard"),
        help="standard: leave the attention as exported (default: group-query; standard for the dialect primitive, for "
        "caches in 8 bits and for what computes in fp16)",
    )
    parser.add_argument("--threads", metavar="N", type=positive_int, help="CPU threads (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print what was saved as JSON")
    add_model_options(parser, "bundle")


def run(args: argparse.Namespace) -> int:
    """Optimise, save and tell."""
    import dataclasses
    import time

    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.bundle.optimized import optimized_folder
    from sdrpn.bundle.shipped import require_not_shipped
    from sdrpn.cli.output import print_json, print_text
    from sdrpn.errors import BadInput
    from sdrpn.host.libraries import importing_extra
    from sdrpn.host.machine import read_cpu
    from sdrpn.host.sizes import text_from_bytes
    from sdrpn.runtime.backends import onnxruntime_version
    from sdrpn.runtime.select import onnxruntime_variant

    require_not_shipped(args.bundle, f"optimise a copy of it: cp -r {args.bundle} bundle && sdrpn optimize bundle")
    bundle = open_bundle(args.bundle)
    bundle.require_graphs("to optimise them for this machine's CPU")
    variant = onnxruntime_variant(bundle, args.variant)
    replaceable = variant.dialect == "fused" and variant.kv_cache is None and not variant.computes_in_half
    attention = args.attention or ("group-query" if replaceable else "standard")
    if attention == "group-query" and variant.dialect != "fused":
        raise BadInput(f"{variant.name} has no attention operators to replace; use --attention standard")
    if attention == "group-query" and variant.computes_in_half:
        raise BadInput(f"{variant.name} computes in fp16 and is cut for engines; use --attention standard")
    if attention == "group-query" and variant.kv_cache is not None:
        raise BadInput(
            f"{variant.name} has a scale for every row of its caches, and ONNX Runtime's operator takes one for all; "
            "use --attention standard"
        )
    with importing_extra("export", "sdrpn optimize"):
        import sdrpn.export  # noqa: F401
    folder = optimized_folder(bundle, variant, onnxruntime_version(), read_cpu())
    bundle.verify(variant.files)
    start_s = time.perf_counter()
    manifest = _optimize(bundle, variant, folder, attention, args.threads)
    seconds = round(time.perf_counter() - start_s, 1)
    size_bytes = sum(info.size_bytes for info in manifest.files.values())
    if args.json:
        entries = dataclasses.asdict(manifest)
        print_json({**entries, "folder": folder, "seconds": seconds, "size_bytes": size_bytes})
        return 0
    print_text(
        f"{folder}: {variant.name} for ONNX Runtime {manifest.onnxruntime} on {manifest.cpu}, "
        f"{text_from_bytes(size_bytes)} on disk, {text_from_bytes(manifest.mapped_bytes)} of it mapped in use"
    )
    return 0


def _optimize(bundle: Bundle, variant: Variant, folder: Path, attention: str, threads: int | None) -> OptimizedManifest:
    from sdrpn.bundle.bundle import FileInfo, file_digest
    from sdrpn.bundle.memory import cpu_needs
    from sdrpn.bundle.optimized import OPTIMIZED_NAME, OptimizedManifest, source_digest
    from sdrpn.cli.progress import progress
    from sdrpn.export.ort_variant import mapped_bytes
    from sdrpn.host.atomic import replacing_directory, require_free_space
    from sdrpn.host.machine import read_cpu
    from sdrpn.runtime.backends import onnxruntime_version

    cpu = read_cpu()
    # As they are and as kernels want them: about what they take in memory, twice.
    require_free_space(folder, 2 * cpu_needs(bundle, variant, context=1).weights_bytes)
    with replacing_directory(folder, exist_ok=True) as work, progress("optimize", "graphs") as advance:
        graphs = _save_all(bundle, variant, work, attention, threads, advance)
        names = sorted(path.name for path in work.iterdir())
        manifest = OptimizedManifest(
            variant=variant.name,
            onnxruntime=onnxruntime_version(),
            cpu=cpu.model,
            cpu_sha256=cpu.digest,
            attention=attention,
            source_sha256=source_digest(bundle, variant),
            graphs=graphs,
            files={name: FileInfo((work / name).stat().st_size, file_digest(work / name)) for name in names},
            mapped_bytes=sum(mapped_bytes(work / file) for file in graphs.values()),
        )
        (work / OPTIMIZED_NAME).write_text(manifest.to_text(), encoding="utf-8")
    return manifest


def _save_all(
    bundle: Bundle,
    variant: Variant,
    work: Path,
    attention: str,
    threads: int | None,
    advance: Callable[[int, int], None],
) -> dict[str, str]:
    """Graph -> the file that it was saved to."""
    from sdrpn.export.ort_variant import group_query_graph
    from sdrpn.runtime.optimize import save_graph

    saved: dict[str, str] = {}
    for name, graph in variant.graphs.items():
        path = bundle.file(graph.file)
        replaced = attention == "group-query" and name != "vision"
        save_graph(graph, group_query_graph(path) if replaced else path, bundle.path, work / f"{name}.onnx", threads)
        saved[name] = f"{name}.onnx"
        advance(len(saved), len(variant.graphs))
    return saved
