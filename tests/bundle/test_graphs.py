"""The table of graphs against what export writes, and the roles of docs/bundle.md against the table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.graphs import GRAPHS, ROLES, graph_named, graphs_of
from sdrpn.bundle.signatures import GraphSignature, expected_signatures
from sdrpn.export.bundle_writer import _AUTHORS
from sdrpn.method.spec import ModelSpec
from tests.families.qwen.models import RPN, spec_3, spec_25

BUNDLE_PAGE = Path(__file__).parents[2] / "docs" / "bundle.md"


def test_every_graph_has_an_author_and_takes_what_another_gives() -> None:
    assert list(_AUTHORS) == [graph.name for graph in GRAPHS]
    for index, graph in enumerate(GRAPHS):
        assert set(graph.needs) <= {earlier.name for earlier in GRAPHS[:index]}
        assert {graph.takes, graph.gives} <= ROLES.keys()
    assert graph_named("tail").takes == graph_named("rpn").takes == graph_named("trunk").gives


def test_a_model_without_an_rpn_has_no_graph_of_it(tiny_spec: ModelSpec) -> None:
    assert [graph.name for graph in graphs_of(tiny_spec)] == ["vision", "trunk", "rpn", "tail"]
    plain = dataclasses.replace(tiny_spec, rpn=None)
    assert [graph.name for graph in graphs_of(plain)] == ["vision", "trunk", "tail"]
    assert [graph.name for graph in graphs_of(spec_25())] == ["vision", "trunk", "gate", "rpn", "tail"]
    assert [graph.name for graph in graphs_of(spec_25(RPN))] == ["vision", "trunk", "rpn", "tail"]
    assert [graph.name for graph in graphs_of(spec_25(), "look")] == ["vision", "trunk", "gate", "rpn"]


def test_signatures_have_what_the_table_says() -> None:
    for dialect in ("fused", "primitive"):
        signatures = expected_signatures(spec_3(), dialect, "fp32", kv_cache="int8")
        for graph in GRAPHS:
            signature = signatures[graph.name]
            inputs = [tensor.role for tensor in signature.inputs.values()]
            assert graph.takes in inputs
            assert graph.gives in [tensor.role for tensor in signature.outputs.values()]
            assert bool(signature.caches) is graph.has_caches
            assert ("cache_scale" in inputs) is graph.coded_caches
            assert ("last_index" in inputs) is graph.asks_one_row


def test_owners_of_caches(tiny_spec: ModelSpec) -> None:
    fused, primitive = (
        expected_signatures(tiny_spec, name, "fp16", kv_cache="int8") for name in ("fused", "primitive")
    )
    assert fused["trunk"].scales["key_cache.1"] == "key_scale_cache.1"
    assert fused["trunk"].scales["value_cache.0_out"] == "value_scale_cache.0_out"
    assert primitive["trunk"].scales["value_cache.0_rows"] == "value_scale_cache.0_rows"
    assert fused["rpn"].scales == {}
    assert {tensor.role for tensor in fused["trunk"].cache_outputs.values()} == {"cache", "cache_scale"}
    assert {tensor.role for tensor in primitive["trunk"].cache_outputs.values()} == {"new_rows", "new_scales"}


def test_every_tensor_of_the_shipped_bundle_has_a_role() -> None:
    bundle = open_bundle("demo")
    for variant in bundle.manifest.variants.values():
        for graph in variant.graphs.values():
            assert all(tensor.role for tensor in (*graph.inputs, *graph.outputs))
            signature = GraphSignature.of(graph.inputs, graph.outputs)
            assert signature.cache_outputs.keys() == signature.caches.keys()


def test_the_page_lists_every_role() -> None:
    page = BUNDLE_PAGE.read_text(encoding="utf-8")
    listed = [line for line in page.splitlines() if line.startswith("| `") and line.split("`")[1] in ROLES]
    assert listed == [f"| `{role.name}` | {role.about} |" for role in ROLES.values()]
