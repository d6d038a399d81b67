"""What a step reads and a prefill computes, against sizes that are added up here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.work import cpu_weights_read, prefill_operations
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec

LAYER = 4 * 64 * 64 + 3 * 64 * 96  # a layer's projections in the model of the tests


def test_a_step_reads_the_weights_of_two_graphs(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    matrices = 4 * (4 * LAYER + 96 * 64)
    norms = 12544 + 16640  # two of each layer and the last one, each at the start of a page
    read = cpu_weights_read(bundle, bundle.variant("fused-fp32"), 8)
    assert read.keys() == {"trunk", "tail"}
    assert sum(read.values()) == matrices + norms


def test_matrices_in_fp16_and_scales_count_as_what_they_become(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions("int4", "fused"))
    bundle = open_bundle(tmp_path / "bundle")
    variant = bundle.variant("fused-int4-cpu")
    sizes = {
        file: bundle.manifest.files[file].size_bytes
        for name in ("trunk", "tail")
        for file in variant.graphs[name].weights
    }
    head = sizes["weights/head.fp16.bin"]
    scales = sum(size for file, size in sizes.items() if file.endswith(".scale.bin"))
    assert head == 2 * 96 * 64
    assert 2 * 4 * LAYER // 32 <= scales < 2 * 4 * LAYER // 32 + 17 * 4096  # each matrix begins at a page
    for scale_bytes, copies in ((2, 1), (4, 2), (8, 4)):
        expected = sum(sizes.values()) + head + (copies - 1) * scales
        assert sum(cpu_weights_read(bundle, variant, scale_bytes).values()) == expected


def test_what_a_graph_in_its_parts_has_not(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    look = bundle.variant("fused-fp32").with_graphs(("vision", "trunk", "rpn"))
    assert cpu_weights_read(bundle, look, 2).keys() == {"trunk"}


def test_a_prefill_multiplies_all_rows_but_those_that_nothing_needs(tiny_spec: ModelSpec) -> None:
    head, keys = 96 * 64, 2 * 64 * 64
    attention = 4 * 64  # of a pair of rows: scores and weighted values
    assert prefill_operations(tiny_spec, 1) == 2 * (4 * LAYER + head) + 4 * attention
    rows, pairs = 10, 55
    products = 3 * LAYER * rows + keys * rows + (LAYER - keys) + head
    assert prefill_operations(tiny_spec, rows) == 2 * products + attention * (3 * pairs + rows)


def test_query_heads_that_share_key_heads(tiny_spec: ModelSpec) -> None:
    shared = dataclasses.replace(tiny_spec, llm=dataclasses.replace(tiny_spec.llm, kv_heads=2))
    saved = prefill_operations(tiny_spec, 10) - prefill_operations(shared, 10)
    assert saved == 2 * 4 * 10 * (2 * 32 * 64)
