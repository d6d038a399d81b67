"""`sdrpn plan`: what a bundle takes in memory before anything is built or loaded.

The JSON form is an object: bundle, variant, device, context, batch, memory_bytes (null where not known), needs
(weights, caches, activations and images in bytes), total_bytes, fits (null where memory_bytes is), largest_context,
kv_cache (int8, fp8, or null for caches in the type that the graphs compute in), other (the same variant with the other
kind of caches: kv_cache, caches_bytes, largest_context).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdrpn.cli.arguments import BUNDLE_HELP, bundle_folder, positive_int

if TYPE_CHECKING:
    from sdrpn.bundle import Bundle, Variant
    from sdrpn.memory import MemoryNeeds

HELP = "say how much memory a bundle takes on a device"
DESCRIPTION = """\
Add up what a bundle takes in memory while it answers: weights, caches, activations and image buffers; and say which
context fits, also with the other kind of caches (8 bits, as `sdrpn export --kv-cache` makes them, or not). For a
target, engines as `sdrpn build` makes them; without one, ONNX Runtime on this machine's CPU. The same sums decide
whether `sdrpn build` and `sdrpn ask` start. Exits 1 where it does not fit.

  sdrpn plan bundle --target jetson-agx-orin-jp72 --context 2048 --batch 2
  sdrpn plan bundle
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=bundle_folder, help=BUNDLE_HELP)
    parser.add_argument("--target", metavar="NAME", help="a target or a .toml file (default: this machine's CPU)")
    parser.add_argument("--variant", metavar="NAME", help="default: what `sdrpn build` or `sdrpn ask` would take")
    parser.add_argument(
        "--context", metavar="N", type=positive_int, help="positions of prompt and answer (default: the bundle's)"
    )
    parser.add_argument("--batch", metavar="B", type=positive_int, default=1, help="requests in a step (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


@dataclass(frozen=True)
class _Place:
    """A device, the variant for it, and how its needs are added up."""

    device: str
    memory_bytes: int | None
    variant: Variant
    needs_of: Callable[[Variant, int], MemoryNeeds]

    def largest_context(self, variant: Variant, limit: int) -> int:
        """That fits; 0: none."""
        from sdrpn.memory import fitting_context

        if self.memory_bytes is None:
            return limit
        return fitting_context(lambda context: self.needs_of(variant, context), self.memory_bytes, limit)


def run(args: argparse.Namespace) -> int:
    """Add up and print."""
    from sdrpn.bundle import open_bundle
    from sdrpn.cli.output import print_json, print_table
    from sdrpn.errors import ContextTooLong
    from sdrpn.shipped import bundle_name
    from sdrpn.sizes import text_from_bytes

    bundle = open_bundle(args.bundle)
    limit = bundle.manifest.max_context
    context = limit if args.context is None else args.context
    if context > limit:
        raise ContextTooLong(f"--context {context} is above the bundle's {limit}; export with a larger one first")
    place = _this_machine(bundle, args) if args.target is None else _on_target(bundle, args)
    variant = place.variant
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
                "batch": args.batch,
                "memory_bytes": place.memory_bytes,
                "needs": needs,
                "total_bytes": needs.total_bytes,
                "fits": fits,
                "largest_context": largest,
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
            ("context, batch", f"{context}, {args.batch}"),
            *((name, text_from_bytes(size)) for name, size in needs.parts),
            ("together", f"{text_from_bytes(needs.total_bytes)}{memory}: {verdict}"),
            ("largest context that fits", f"{largest} of {limit}" if largest else "none"),
            (
                f"with {f'--kv-cache {other.kv_cache}' if other.kv_cache else 'caches of floats'}",
                f"caches {text_from_bytes(other_bytes)}, largest context {other_largest or 'none'}",
            ),
        ]
        print_table((place.device, ""), rows)
    return 1 if fits is False else 0


def _this_machine(bundle: Bundle, args: argparse.Namespace) -> _Place:
    from sdrpn.machine import read_machine
    from sdrpn.memory import cpu_needs
    from sdrpn.runtime.choice import mapped_weights_bytes, onnxruntime_variant

    variant = onnxruntime_variant(bundle, args.variant)
    mapped_bytes = mapped_weights_bytes(bundle, variant)
    return _Place(
        "this machine's CPU" if mapped_bytes is None else "this machine's CPU, optimized graphs",
        read_machine().memory_available_bytes,
        variant,
        lambda one, context: cpu_needs(bundle, one, context=context, batch=args.batch, mapped_bytes=mapped_bytes),
    )


def _on_target(bundle: Bundle, args: argparse.Namespace) -> _Place:
    from sdrpn.engines import read_target, target_variant
    from sdrpn.memory import device_needs, graph_weights_bytes

    target = read_target(args.target)
    variant = target_variant(bundle, target) if args.variant is None else bundle.variant(args.variant)
    weights_bytes = sum(graph_weights_bytes(bundle, variant).values())
    return _Place(
        f"{target.name}: {target.device}",
        target.memory_bytes,
        variant,
        lambda one, context: device_needs(
            bundle.spec, weights_bytes, context=context, batch=args.batch, kv_cache=one.kv_cache
        ),
    )
