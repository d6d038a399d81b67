"""`sdrpn build`: from a bundle's graphs to TensorRT engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdrpn.bundle.numerics import CACHE_FORMS, DIALECT_NAMES
from sdrpn.terminal.argument_types import context_lengths, positive_int, whole_number
from sdrpn.terminal.arguments import filled
from sdrpn.terminal.look_arguments import add_parts_argument
from sdrpn.terminal.model_folders import add_bundle_argument

if TYPE_CHECKING:
    from sdrpn.workflows.engine_build import BuildOptions, BuildRequest

HELP = "build TensorRT engines from a bundle"
DESCRIPTION = """\
Build TensorRT engines from a bundle's graphs for one target, into BUNDLE/engines/TARGET. `sdrpn targets` lists them;
those of TensorRT-RTX are compiled without a GPU, those of TensorRT on the device itself.

Engines that were built from the same inputs are kept. Each graph is built in its own process; an interrupted build
leaves nothing that loads. If this machine's GPU fits the new engines, each is run once before it is accepted.
If TensorRT cannot build an engine for a graph of the dialect fused, attention is decomposed, and then the dialect
primitive is tried.

  sdrpn build bundle --target rtx-4090 --max-context 2048
  sdrpn build bundle --target jetson-agx-orin-jp62 --max-context 1024,4096
  sdrpn build bundle --target my-device.toml --graphs trunk,tail --jobs 2
  sdrpn build bundle --target jetson-agx-orin-jp72 --timing-cache orin.timing
  sdrpn build demo --target rtx-4090 --out bundle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    parser.add_argument(
        "--target", metavar="NAME", required=True, help="name of a target, or a .toml file of the same form"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="copy BUNDLE there first and build in the copy; required for the bundle that ships with this package",
    )
    parser.add_argument(
        "--graphs",
        metavar="A,B",
        help="which of vision, trunk, gate, rpn, tail to build (default: all that the model has)",
    )
    add_parts_argument(parser)
    parser.add_argument(
        "--precision",
        metavar="NAME",
        help="one of the target's precisions (default: the best of them that the bundle has)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=tuple(CACHE_FORMS),
        help="build from a variant with a KV cache in 8 bits, which `sdrpn export --dialect primitive "
        "--kv-cache` writes (default: a variant without)",
    )
    parser.add_argument(
        "--max-context",
        metavar="N[,N]",
        type=context_lengths,
        help="rows of the KV cache: the most tokens of prompt and answer; a decode step reads all of them (default: "
        "2048, or the bundle's limit if that is less). Several: one engine in the dialect primitive with a profile for "
        "each; a question uses the shortest that fits it",
    )
    parser.add_argument(
        "--dialect",
        choices=DIALECT_NAMES,
        help="dialect of the graphs (default: the target's, but primitive for several contexts and for caches in 8 "
        "bits)",
    )
    parser.add_argument(
        "--max-batch",
        metavar="N",
        type=positive_int,
        default=1,
        help="questions that are decoded together, each with caches of its own (default: 1)",
    )
    parser.add_argument(
        "--tuned-batch",
        metavar="N",
        type=positive_int,
        help="how many of them kernels are chosen for (default: --max-batch)",
    )
    parser.add_argument(
        "--jobs", metavar="N", type=positive_int, default=1, help="builds that run at once (default: 1)"
    )
    parser.add_argument(
        "--opt-level", metavar="0..5", type=whole_number, choices=range(6), help="builder optimization level"
    )
    parser.add_argument("--workspace", metavar="MB", type=positive_int, help="limit of the scratch memory of a kernel")
    parser.add_argument(
        "--weight-streaming", action="store_true", help="allow weights to stay in host memory at run time"
    )
    parser.add_argument(
        "--timing-cache", metavar="FILE", type=Path, help="where TensorRT keeps its measurements for later builds"
    )
    parser.add_argument(
        "--device",
        metavar="N",
        type=whole_number,
        help="TensorRT: the GPU to build on and for, as CUDA counts them (default: CUDA's first)",
    )
    parser.add_argument("--hardware-compat", action="store_true", help="TensorRT: engines for every GPU from Ampere on")
    parser.add_argument(
        "--version-compatible", action="store_true", help="TensorRT: engines that later releases run too"
    )
    parser.add_argument("--refit", action="store_true", help="allow weights to be replaced later")
    parser.add_argument(
        "--profiling-verbosity",
        metavar="HOW",
        choices=("detailed", "names", "none"),
        default="detailed",
        help="what the engine records about its kernels: detailed, names or none (default: detailed)",
    )
    parser.add_argument(
        "--any-release", action="store_true", help="also build with a release outside the target's range"
    )
    parser.add_argument(
        "--no-kernel-gate", action="store_true", help="also keep engines that copy caches or lack fused attention"
    )
    parser.add_argument(
        "--no-memory-check", action="store_true", help="start even if the estimated memory does not fit"
    )
    parser.add_argument("--verify", action="store_true", help="hash files again, even if size and time are unchanged")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be built and what it needs; build nothing"
    )
    parser.add_argument(
        "--print-trtexec",
        action="store_true",
        help="print the same builds as trtexec commands; build nothing",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Build, or print what would be built."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.terminal.output_file import report_written, require_output_file, require_output_folder
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.engine_build import build
    from sdrpn.workflows.engine_build_text import build_text

    require_output_folder("--out", args.out)
    if args.timing_cache is not None:
        require_output_file("--timing-cache", args.timing_cache, ())
    request = _request(args)
    if args.dry_run or args.print_trtexec:
        _print_only(args, request)
        return 0
    with progress("build", "percent") as advance:
        done = build(request, advance)
    if args.json:
        print_json(done.to_json())
    else:
        print_report(build_text(done))
        report_written(done.engines[0].path.parent, "engines")
    return 0


def _print_only(args: argparse.Namespace, request: BuildRequest) -> None:
    from sdrpn.terminal.failure import Failure
    from sdrpn.terminal.output import print_json, print_report, print_text
    from sdrpn.workflows.engine_build import needs_copy, plan_build, plan_to_json, trtexec_script
    from sdrpn.workflows.engine_build_text import plan_text

    plan = plan_build(request)
    if args.print_trtexec:
        print_text(trtexec_script(plan).rstrip("\n"))
    elif args.json:
        print_json(plan_to_json(plan))
    else:
        error = needs_copy(request, plan)
        in_words = None if error is None or plan.obstacle != str(error) else Failure.of(error).message
        print_report(plan_text(plan, in_words or plan.obstacle))


def _request(args: argparse.Namespace) -> BuildRequest:
    from sdrpn.workflows.engine_build import BuildRequest

    return filled(BuildRequest, args, options=_options(args), check_memory=not args.no_memory_check)


def _options(args: argparse.Namespace) -> BuildOptions:
    from sdrpn.workflows.engine_build import BuildOptions

    contexts = args.max_context or (None,)
    return filled(
        BuildOptions,
        args,
        graphs=None if args.graphs is None else tuple(filter(None, args.graphs.split(","))),
        max_context=contexts[-1],
        shorter_contexts=contexts[:-1],
        workspace_mb=args.workspace,
        verbosity=args.profiling_verbosity,
        kernel_gate=not args.no_kernel_gate,
    )
