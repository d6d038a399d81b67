"""`sdrpn optimize`: make a bundle's graphs ready for this machine's CPU, once.

The JSON form is sdrpn.bundle.optimized.OptimizedManifest, and folder, seconds, size_bytes.
"""

from __future__ import annotations

import argparse

from sdrpn.terminal.arguments import add_threads_argument, filled
from sdrpn.terminal.model_folders import add_bundle_argument
from sdrpn.terminal.optimize_arguments import add_optimize_arguments

HELP = "make a bundle's graphs ready for this machine's CPU"
DESCRIPTION = """\
Let ONNX Runtime optimise a variant's graphs for this machine's CPU and keep the result in the bundle: `sdrpn ask` and
`sdrpn bench` take it from then on. Attention runs in ONNX Runtime's own operator, whose cost depends on the context in
use, not on the length of the KV cache. Weights are saved in the layout of the kernels and memory-mapped: all processes
share one copy, which the system can drop when memory is short. On disk they take two to three times the size of the
bundle's own weights.

With --for openvino they are saved in OpenVINO's own form: read without conversion, with weights that are mapped, which
it would otherwise hold twice where they are floats.

The result fits one version of the library on one processor model. With another one, or after another export, the
bundle's own graphs are used, with a warning, unless --rebuild-optimized makes them again. What is stale beside the
result is removed.

  sdrpn optimize bundle
  sdrpn optimize bundle --variant fused-int4-cpu
  sdrpn optimize bundle --variant fused-int4-cpu --int8 lm_head,rpn,vision    # the least memory
  sdrpn optimize bundle --variant fused-int4-cpu --for openvino
  sdrpn optimize bundle --variant fused-int4-cpu --int4 lm_head    # a faster decode
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    add_optimize_arguments(parser)
    add_threads_argument(parser)
    parser.add_argument("--json", action="store_true", help="print what was saved as JSON")


def run(args: argparse.Namespace) -> int:
    """Optimise, save and print what was saved."""
    from sdrpn.terminal.output import print_json, print_text
    from sdrpn.terminal.progress import progress
    from sdrpn.workflows.graph_optimization import OptimizeRequest, optimize

    with progress("optimize", "graphs") as advance:
        saved = optimize(filled(OptimizeRequest, args), advance)
    if args.json:
        print_json(saved.to_json())
        return 0
    print_text("\n".join(saved.lines))
    return 0
