"""Sums of memory: by hand, and the refusal that names them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.memory import MemoryNeeds, cpu_needs, device_needs, fitting_context, require_cpu_memory, usual_context
from sdrpn.errors import RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec


def needs(context: int) -> MemoryNeeds:
    return MemoryNeeds(1000, 10 * context, 5, 0)


@pytest.mark.parametrize(("memory", "expected"), [(1015, 1), (1014, 0), (1555, 55), (10**9, 64), (1644, 63)])
def test_the_largest_context_that_fits(memory: int, expected: int) -> None:
    assert fitting_context(needs, memory, 64) == expected


def test_caches_by_hand(tiny_spec: ModelSpec) -> None:
    """4 layers and one of the RPN, keys and values, and its key cache: 11 of 64 halves; 64 floats of tap."""
    assert device_needs(tiny_spec, 7, context=100, batch=2).caches_bytes == 2 * 100 * (11 * 64 * 2 + 64 * 4)
    plain = dataclasses.replace(tiny_spec, rpn=None)
    assert device_needs(plain, 7, context=100).caches_bytes == 100 * (8 * 64 * 2 + 64 * 4)
    assert device_needs(tiny_spec, 7, context=100).weights_bytes == 7


def test_caches_in_8_bits_by_hand(tiny_spec: ModelSpec) -> None:
    """8 caches of the LLM: 64 bytes and the scales of 4 heads; 3 of the RPN as before."""
    row = 8 * (64 + 4 * 2) + 3 * 64 * 2 + 64 * 4
    assert device_needs(tiny_spec, 7, context=100, batch=2, kv_cache="int8").caches_bytes == 2 * 100 * row
    assert device_needs(tiny_spec, 7, context=100, kv_cache="fp8").caches_bytes == 100 * row


def test_a_cpu_reads_caches_in_8_bits_through_floats(coded_bundle: Path) -> None:
    bundle = open_bundle(coded_bundle)
    plain, coded = (
        cpu_needs(bundle, bundle.variant(name), context=100) for name in ("fused-fp32", "fused-fp32-kv-int8")
    )
    assert coded.caches_bytes == 100 * (8 * (64 + 4 * 4) + 3 * 64 * 4 + 64 * 4)
    assert coded.activations_bytes == plain.activations_bytes + 3 * 100 * 64 * 4
    assert coded.weights_bytes == plain.weights_bytes


def test_a_library_that_holds_them_in_8_bits_itself(coded_bundle: Path) -> None:
    """It reads the codes: no floats are made of them."""
    bundle = open_bundle(coded_bundle)
    variant = bundle.variant("fused-fp32")
    plain, coded = (cpu_needs(bundle, variant, context=100, row_extra_bytes=extra) for extra in (None, 8))
    assert coded.caches_bytes == 100 * (8 * (64 + 4 * 8) + 3 * 64 * 4 + 64 * 4)
    assert coded.activations_bytes == plain.activations_bytes


def test_graphs_that_keep_their_activations(tiny_bundle: Path) -> None:
    """Each of trunk, RPN and tail, beside the tower."""
    bundle = open_bundle(tiny_bundle)
    shared, kept, look = (
        cpu_needs(
            bundle, bundle.variant("fused-fp32").with_graphs(graphs), context=100, each_keeps=each, process_bytes=0
        )
        for graphs, each in (
            (("vision", "trunk", "rpn", "tail"), False),
            (("vision", "trunk", "rpn", "tail"), True),
            (("vision", "trunk", "rpn"), True),
        )
    )
    row = 4 * 64 * 4 + 2 * (3 * 64 + 2 * 96) * 4 + 4 * 100 * 4
    assert kept.activations_bytes - look.activations_bytes == 100 * row
    assert kept.activations_bytes > shared.activations_bytes


def test_images_by_hand(tiny_spec: ModelSpec) -> None:
    assert device_needs(tiny_spec, 0, context=1).images_bytes == 3 * 4 * (3 * 56 * 56 + 16 * 64)


def test_a_cpu_holds_floats_of_4_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for precision in ("fp32", "int4"):
        export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions(precision))
    bundle = open_bundle(tmp_path / "b")
    full, small = (cpu_needs(bundle, bundle.variant(name), context=100) for name in ("fused-fp32", "fused-int4-cpu"))
    assert full.caches_bytes == small.caches_bytes == 100 * (11 * 64 * 4 + 64 * 4)
    assert small.weights_bytes < full.weights_bytes
    half = cpu_needs(bundle, bundle.variant("fused-int4"), context=100)
    assert half.caches_bytes == 100 * (11 * 64 * 2 + 64 * 4)


def test_a_machine_that_is_too_small(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    variant = bundle.variant()
    context = usual_context(bundle.spec, bundle.manifest.max_context)
    needed = cpu_needs(bundle, variant, context=context).total_bytes
    require_cpu_memory(bundle, variant, needed)
    require_cpu_memory(bundle, variant, None)
    message = (
        r"as fused-fp32 needs about .* \(weights .*, caches .*, activations .*, image .*\) for a context of 224, and "
        r"this machine has 1\.0 MB available: .* are missing; export in int4 for a smaller one, or skip this check$"
    )
    with pytest.raises(RunFailed, match=message):
        require_cpu_memory(bundle, variant, 1_000_000)
