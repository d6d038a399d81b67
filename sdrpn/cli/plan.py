"""`sdrpn plan`: how much memory a bundle needs, before anything is built or loaded.

The JSON form is an object: bundle, variant, parts (all or look), device, context (the longest), contexts, batch,
memory_bytes (null where not known), needs (weights, caches, activations, images, scores of attention that may not be
fused, and the picture, in bytes), total_bytes, other_parts_bytes (the same of all in place of a look, or of a look
alone; null without an RPN), fits (null where memory_bytes is), largest_context, step_bytes (context -> what a decode
step of an engine reads; empty for a CPU, and for a look), kv_cache (int8, fp8, or null for caches in the type that the
graphs compute in), other (the same variant with the other kind of caches: kv_cache, caches_bytes, largest_context),
prefixes (what is kept of pictures asked about before, beside all this and only of memory that is left: limit_bytes,
picture_bytes, pictures). Of a published model's name: shape, parts, image_tokens, batch, kv_cache, assumed (what is not
known of it), fits (anywhere), devices (as above, one each; step_bytes is one number, null for a look).
"""

from __future__ import annotations

import argparse

from sdrpn.terminal.argument_types import AUTO, context_lengths, positive_int, whole_number
from sdrpn.terminal.arguments import GRAPH_BACKENDS, filled
from sdrpn.terminal.look_arguments import add_parts_argument, add_shape_arguments
from sdrpn.terminal.model_folders import add_bundle_argument
from sdrpn.terminal.session_arguments import DECODE_COPY, add_decode_copy_argument

HELP = "estimate how much memory a bundle needs on a device"
DESCRIPTION = """\
Estimate the memory that a bundle needs while it answers: weights, caches, activations and image buffers; and which
context fits, also with the other kind of KV cache (in 8 bits, as `sdrpn export --kv-cache` writes, or not). With a
target: for engines as `sdrpn build` makes them; without: for this machine's CPU. The same estimate
decides whether `sdrpn build` and `sdrpn ask` start. Exits 1 if the bundle does not fit. In place of BUNDLE, the name of
a published model is planned by its sizes, for every target or one. Of what answers, the plan also says what looks alone
would take, and the reverse.

  sdrpn plan bundle --target jetson-agx-orin-jp72 --context 2048 --batch 2
  sdrpn plan bundle --target jetson-agx-orin-jp62 --context 1024,4096
  sdrpn plan bundle
  sdrpn plan qwen3-vl-4b-q-zoom --precision int4
  sdrpn plan llava-1.5-7b-sd-rpn --precision int4 --parts look
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    add_bundle_argument(parser)
    parser.add_argument("--target", metavar="NAME", help="a target or a .toml file (default: this machine's CPU)")
    parser.add_argument(
        "--backend",
        choices=(AUTO, *GRAPH_BACKENDS),
        default=AUTO,
        help="without --target: the library that runs the graphs on this machine (default: auto, the one that `sdrpn "
        "ask` takes)",
    )
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="variant to plan for (default: the one that `sdrpn build` or `sdrpn ask` would use)",
    )
    parser.add_argument(
        "--context",
        metavar="N[,N]",
        type=context_lengths,
        help="tokens of prompt and answer (default: for a target as `sdrpn build`, for a CPU the bundle's limit); "
        "several: engines with a profile for each",
    )
    parser.add_argument(
        "--batch", metavar="B", type=positive_int, default=1, help="questions that are decoded together (default: 1)"
    )
    parser.add_argument(
        "--prefix-bytes",
        metavar="N",
        type=whole_number,
        help="most memory for what was computed of pictures asked about before (default: 256 MB on a CPU, else none)",
    )
    add_parts_argument(parser)
    picture_help = (
        "the largest picture, a file or a size such as 4000x3000, whose pixels are counted (default: small ones)"
    )
    parser.add_argument("--picture", metavar="PICTURE", help=picture_help)
    add_shape_arguments(parser)
    add_decode_copy_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(args: argparse.Namespace) -> int:
    """Estimate and print."""
    from sdrpn.terminal.output import print_json, print_report
    from sdrpn.workflows.memory_plan import PlanRequest, plan
    from sdrpn.workflows.memory_plan_text import memory_text

    found = plan(filled(PlanRequest, args, contexts=args.context or (), decode_copy=DECODE_COPY[args.decode_copy]))
    if args.json:
        print_json(found.to_json())
    else:
        print_report(memory_text(found))
    return 1 if found.fits is False else 0
