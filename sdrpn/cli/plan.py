"""`sdrpn plan`: what a bundle takes in memory before anything is built or loaded.

The JSON form is an object: bundle, variant, device, context (the longest), contexts, batch, memory_bytes (null where
not known), needs (weights, caches, activations, images, and scores of attention that may not be fused, in bytes),
total_bytes, fits (null where memory_bytes is), largest_context, step_bytes (context -> what a decode step of an engine
reads; empty for a CPU), kv_cache (int8, fp8, or null for caches in the type that the graphs compute in), other (the
same variant with the other kind of caches: kv_cache, caches_bytes, largest_context).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder, context_lengths, positive_int
from sdrpn.cli.model_folders import add_model_options

if TYPE_CHECKING:
    from sdrpn.bundle.bundle import Bundle, Variant
    from sdrpn.bundle.memory import MemoryNeeds

HELP = "say how much memory a bundle takes on a device"
DESCRIPTION = """\
Add up what a bundle takes in memory while it answers: weights, caches, activations and image buffers; and say which
context fits, also with the other kind of caches (8 bits, as `sdrpn export --kv-cache` makes them, or not). For a
target, engines as `sdrpn build` makes them; without one, ONNX Runtime on this machine's CPU. The same sums decide
whether `sdrpn build` and `sdrpn ask` start. Exits 1 where it does not fit.

  sdrpn plan bundle --target jetson-agx-orin-jp72 --context 2048 --batch 2
  sdrpn plan bundle --target jetson-agx-orin-jp62 --context 1024,4096
  sdrpn plan bundle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument("--target", metavar="NAME", help="a target or a .toml file (default: this machine's CPU)")
    parser.add_argument("--variant", metavar="NAME", help="default: what `sdrpn build` or `sdrpn ask` would take")
    parser.add_argument(
        "--context",
        metavar="N[,N]",
        type=context_lengths,
        help="positions of prompt and answer (default: of a target what `sdrpn build` takes, of a CPU the bundle's); "
        "several: engines with profiles for each",
    )
    parser.add_argument("--batch", metavar="B", type=positive_int, default=1, help="requests in a step (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_model_options(parser, "bundle")


@dataclass(frozen=True)
class _Place:
    """A device, the variant for it, and how its needs are added up."""

    device: str
    memory_bytes: int | None
    variant: Variant
    needs_of: Callable[[Variant, int], MemoryNeeds]
    usual_context: int
    step_of: Callable[[int], int] | None = None  # bytes that a decode step reads at a context; None: not known

    def largest_context(self, variant: Variant, limit: int) -> int:
        """That fits; 0: none."""
        from sdrpn.bundle.memory import fitting_context

        if self.memory_bytes is None:
            return limit
        return fitting_context(lambda context: self.needs_of(variant, context), self.memory_bytes, limit)


def run(args: argparse.Namespace) -> int:
    """Add up and print."""
    from sdrpn.bundle.bundle import open_bundle
    from sdrpn.bundle.shipped import bundle_name
    from sdrpn.cli.output import print_json, print_table
    from sdrpn.errors import ContextTooLong
    from sdrpn.host.sizes import text_from_bytes

    bundle = open_bundle(args.bundle)
    limit = bundle.manifest.max_context
    if args.context is not None and args.context[-1] > limit:
        raise ContextTooLong(
            f"--context {args.context[-1]} is above the bundle's {limit}; export with a larger one first"
        )
    if args.target is None:
        engines = " or ".join(f"--target {name}" for name in bundle.release_targets)
        bundle.require_graphs("to answer on this machine's CPU", f"of its engines: {engines}")
    place = _this_machine(bundle, args) if args.target is None else _on_target(bundle, args)
    contexts = args.context or (place.usual_context,)
    context, variant = contexts[-1], place.variant
    steps = {} if place.step_of is None else {one: place.step_of(one) for one in contexts}
    needs = place.needs_of(variant, context)
    fits = None if place.memory_bytes is None else needs.total_bytes <= place.memory_bytes
    largest = place.largest_context(variant, limit)
    other = dataclasses.replace(variant, kv_cache="int8" if variant.kv_cache is None else None)
    other_bytes, other_largest = place.needs_of(other, context).caches_bytes, place.largest_context(other, limit)
    if args.json:
        print_json(
            {
                "bundle": bundle_name(args.bundle),
                "variant": variant.name,
                "device": place.device,
                "context": context,
                "contexts": contexts,
                "batch": args.batch,
                "memory_bytes": place.memory_bytes,
                "needs": needs,
                "total_bytes": needs.total_bytes,
                "fits": fits,
                "largest_context": largest,
                "step_bytes": steps,
                "kv_cache": variant.kv_cache,
                "other": {
                    "kv_cache": other.kv_cache,
                    "caches_bytes": other_bytes,
                    "largest_context": other_largest,
                },
            }
        )
    else:
        memory = "" if place.memory_bytes is None else f" of {text_from_bytes(place.memory_bytes)}"
        verdict = {True: "fits", False: "does not fit", None: "not known"}[fits]
        rows = [
            ("variant", variant.name),
            ("context, batch", f"{' and '.join(map(str, contexts))}, {args.batch}"),
            *((name, text_from_bytes(size)) for name, size in needs.parts),
            ("together", f"{text_from_bytes(needs.total_bytes)}{memory}: {verdict}"),
            *((f"a step reads at {one}", text_from_bytes(size)) for one, size in steps.items()),
            ("largest context that fits", f"{largest} of {limit}" if largest else "none"),
            (
                f"with {f'--kv-cache {other.kv_cache}' if other.kv_cache else 'caches of floats'}",
                f"caches {text_from_bytes(other_bytes)}, largest context {other_largest or 'none'}",
            ),
        ]
        print_table((place.device, ""), rows)
    return 1 if fits is False else 0


def _this_machine(bundle: Bundle, args: argparse.Namespace) -> _Place:
    from sdrpn.bundle.memory import cpu_needs
    from sdrpn.host.machine import read_machine
    from sdrpn.runtime.select import mapped_weights_bytes, onnxruntime_variant

    variant = onnxruntime_variant(bundle, args.variant)
    mapped_bytes = mapped_weights_bytes(bundle, variant)
    return _Place(
        "this machine's CPU" if mapped_bytes is None else "this machine's CPU, optimized graphs",
        read_machine().memory_available_bytes,
        variant,
        lambda one, context: cpu_needs(bundle, one, context=context, batch=args.batch, mapped_bytes=mapped_bytes),
        bundle.manifest.max_context,
    )


def _on_target(bundle: Bundle, args: argparse.Namespace) -> _Place:
    from sdrpn.bundle.memory import device_needs, graph_weights_bytes, step_bytes
    from sdrpn.engines import read_target, target_variant, usual_context

    target = read_target(args.target)
    dialect = "primitive" if args.context is not None and len(args.context) > 1 else None  # as `sdrpn build` takes it
    variant = target_variant(bundle, target, dialect=dialect) if args.variant is None else bundle.variant(args.variant)
    sizes = graph_weights_bytes(bundle, variant)
    unfused = target.may_write_scores(variant.dialect)
    return _Place(
        f"{target.name}: {target.device}",
        target.memory_bytes,
        variant,
        lambda one, context: device_needs(
            bundle.spec,
            sum(sizes.values()),
            context=context,
            batch=args.batch,
            kv_cache=one.kv_cache,
            unfused_attention=unfused,
        ),
        usual_context(bundle.spec, bundle.manifest.max_context),
        lambda context: step_bytes(bundle.spec, sizes["trunk"] + sizes["tail"], context, variant.kv_cache),
    )
