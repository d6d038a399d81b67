"""Graphs whose trunk and tail keep keys and values in 8 bits: what they take and give, and what it costs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from sdrpn.bundle.bundle import MANIFEST_NAME, Bundle, open_bundle
from sdrpn.bundle.cache_codes import ROW_CODES, decoded_caches
from sdrpn.bundle.signatures import GraphSignature, expected_signatures
from sdrpn.checkpoint import open_checkpoint
from sdrpn.compare.graphs import compare_graphs
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.runtime.backends import open_backend
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.runner import Array
from tests.export.graph_runner import Feeds, GraphRunner
from tests.tolerances import CODES_HIDDEN_ABS, PARITY_ABS

VARIANTS = ("fused-fp32-kv-int8", "primitive-fp32-kv-int8", "primitive-fp32-kv-fp8")
LENGTH, ROWS = 24, 9


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(tiny_checkpoint) as source:
        return model_from_checkpoint(source)


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(bundle: Bundle, variant: str, graph: str, feeds: Feeds) -> dict[str, Array]:
    backend, info = open_backend("onnxruntime", 1), bundle.variant(variant).graphs[graph]
    return run_on_arrays(backend, backend.load(info, bundle.file(info.file)), feeds)


def test_every_graph_is_within_its_limits_of_the_model(coded_bundle: Path, model: SdRpnModel, name: str) -> None:
    bundle = open_bundle(coded_bundle)
    variant, context = bundle.variant(name), bundle.manifest.max_context
    checks = list(
        compare_graphs(model, variant, lambda graph, feeds: run(bundle, name, graph, dict(feeds)), max_context=context)
    )
    assert {check.graph for check in checks} == {"vision", "trunk", "rpn", "tail"}
    assert {check.kind for check in checks} == {"names", "axes", "shapes", "values"}
    assert [check for check in checks if not check.ok] == []


@pytest.mark.parametrize(
    ("name", "scales"),
    [("fused-fp32-kv-int8", "key_scale_cache.1"), ("primitive-fp32-kv-fp8", "value_scale_cache.0")],
)
def test_scales_that_are_read_wrongly_are_noticed(
    coded_bundle: Path, model: SdRpnModel, name: str, scales: str
) -> None:
    bundle = open_bundle(coded_bundle)

    def wrong(graph: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        changed = {key: feed / 2 if key == scales else feed for key, feed in feeds.items()}
        return run(bundle, name, graph, changed)

    checks = list(compare_graphs(model, bundle.variant(name), wrong, max_context=bundle.manifest.max_context))
    assert {check.graph for check in checks if not check.ok} == {"trunk"}


def test_only_keys_and_values_of_trunk_and_tail_are_in_8_bits(coded_bundle: Path, name: str) -> None:
    variant = open_bundle(coded_bundle).variant(name)
    codes = ROW_CODES[str(variant.kv_cache)]
    for graph in ("trunk", "tail"):
        inputs = {tensor.name: tensor for tensor in variant.graphs[graph].inputs}
        for cache in (found for found in inputs if found.split(".")[0] in ("key_cache", "value_cache")):
            scales = inputs[cache.replace("_cache", "_scale_cache")]
            assert (inputs[cache].dtype, scales.dtype) == (codes.dtype, "float32")
            assert scales.dims == (*inputs[cache].dims[:3], 1)
    assert {tensor.dtype for tensor in variant.graphs["rpn"].inputs} == {"float32", "int64"}


def test_the_new_rows_are_what_the_specification_says(coded_bundle: Path, name: str) -> None:
    """The plain graphs' rows, rounded in NumPy, against those of the graphs that round themselves; the first layer."""
    bundle = open_bundle(coded_bundle)
    codes = ROW_CODES[str(bundle.variant(name).kv_cache)]
    plain, coded = (first_rows(bundle, variant) for variant in ("fused-fp32", name))
    for cache in ("key_cache.0", "value_cache.0"):
        expected = codes.decoded(*codes.encoded(plain[cache], "float32"))
        step = np.abs(plain[cache]).max(axis=-1, keepdims=True) / (127 if codes.form.name == "int8" else 8)
        # Where the last digit of a float decides, the next code is as good.
        assert (np.abs(coded[cache] - expected) <= step + PARITY_ABS).all()
        equal = np.isclose(coded[cache], expected, atol=PARITY_ABS).mean()
        assert equal > 0.99, f"{equal:.4f} of the entries are the same"


def first_rows(bundle: Bundle, variant: str) -> dict[str, Array]:
    """(1,H_kv,ROWS,head_dim) of the trunk's caches by name, after one run."""
    info = bundle.variant(variant).graphs["trunk"]
    extents = {"batch": 1, "cache_length": LENGTH, "sequence": ROWS}
    feeds = {
        tensor.name: np.zeros([extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims], tensor.storage)
        for tensor in info.inputs
    }
    feeds |= {"inputs_embeds": hidden(bundle), **GraphRunner(bundle.path, variant).rows("trunk", np.arange(ROWS)[None])}
    results, kv_cache = run(bundle, variant, "trunk", feeds), bundle.variant(variant).kv_cache
    scales = GraphSignature.of(info.inputs, info.outputs).scales
    numbers = results if kv_cache is None else decoded_caches(ROW_CODES[kv_cache], results, scales)
    return {name.rpartition("_")[0]: rows[:, :, :ROWS] for name, rows in numbers.items()}


def hidden(bundle: Bundle) -> Array:
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, ROWS, bundle.spec.llm.width)).astype(np.float32)


@pytest.mark.parametrize("name", ["fused-fp32-kv-int8", "primitive-fp32-kv-int8"])
def test_it_makes_no_difference_in_which_parts_rows_come(coded_bundle: Path, name: str) -> None:
    """New rows are attended to as they are stored. A float's last digit may still choose another code."""
    runner = GraphRunner(coded_bundle, name)
    rows = hidden(runner.bundle)
    at_once = runner.run("trunk", rows, runner.caches("trunk", LENGTH, fill=1.0), 0)["tap"]
    caches = runner.caches("trunk", LENGTH, fill=1.0)
    parts = [runner.run("trunk", rows[:, a:b], caches, a)["tap"] for a, b in ((0, 4), (4, 8), (8, 9))]
    assert np.abs(np.concatenate(parts, axis=1) - at_once).max() <= CODES_HIDDEN_ABS


def test_a_variant_of_its_own_on_the_same_weights(coded_bundle: Path) -> None:
    manifest = open_bundle(coded_bundle).manifest
    plain, coded = manifest.variants["fused-fp32"], manifest.variants["fused-fp32-kv-int8"]
    assert (plain.kv_cache, coded.kv_cache, coded.numerics) == (None, "int8", "fp32-kv-int8")
    for graph in plain.graphs:
        assert plain.graphs[graph].weights == coded.graphs[graph].weights
    # Where both are there, a CPU takes the exact one.
    assert open_bundle(coded_bundle).variant().name == "fused-fp32"


def test_a_bundle_from_before_opens(tiny_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((tiny_bundle / MANIFEST_NAME).read_text())
    for variant in manifest["variants"].values():
        del variant["kv_cache"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert open_bundle(tmp_path).variant().kv_cache is None


def test_int4_weights_with_caches_in_8_bits(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export_bundle(tiny_checkpoint, tmp_path / "b", ExportOptions("int4", kv_cache="int8"))
    assert list(manifest.variants) == ["fused-int4-kv-int8-cpu", "fused-int4-kv-int8"]
    for variant, dtype in zip(manifest.variants.values(), ("float32", "float16"), strict=True):
        expected = expected_signatures(
            manifest.spec, "fused", "int4", for_cpu=variant.for_cpu, kv_cache=variant.kv_cache
        )["trunk"]
        assert {tensor.name: tensor for tensor in variant.graphs["trunk"].inputs} == expected.inputs
        assert expected.inputs["key_scale_cache.0"].dtype == dtype


def test_the_dialect_primitive_stays_in_its_opset(coded_bundle: Path) -> None:
    bundle = open_bundle(coded_bundle)
    for name in VARIANTS[1:]:
        graph = bundle.variant(name).graphs["trunk"]
        (imported,) = onnx.load(bundle.file(graph.file), load_external_data=False).opset_import
        assert imported.version == 20
        onnx.checker.check_model(str(bundle.file(graph.file)), full_check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache": "int4"}, "caches in 'int4' are unknown; expected one of int8, fp8, or none"),
        ({"kv_cache": "fp8"}, "caches in fp8 .*the dialect fused.*use int8, or the dialect primitive"),
    ],
)
def test_what_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(ExportOptions(), **options)  # type: ignore[arg-type]
