"""ONNX Runtime's variant of a decoder graph gives what the standard graph gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.errors import BadInput
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.export.ort_variant import group_query_graph
from sdrpn.method.spec import ModelSpec
from tests.export.graph_runner import Array, GraphRunner
from tests.tolerances import SAME_MATH_ABS

CACHE_ROWS = 40


class VariantRunner(GraphRunner):
    """The same graphs with their attentions replaced."""

    def model(self, name: str) -> bytes:
        return group_query_graph(self.bundle.file(self.graph(name).file))


@pytest.fixture(scope="module", params=["as many key heads", "shared key heads"])
def checkpoint(request: pytest.FixtureRequest, tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kv_heads = tiny_spec.llm.heads if request.param == "as many key heads" else 2
    spec = dataclasses.replace(tiny_spec, llm=dataclasses.replace(tiny_spec.llm, kv_heads=kv_heads))
    path = tmp_path_factory.mktemp("ort") / "checkpoint"
    write_random_checkpoint(path, spec)
    return path


@pytest.fixture(scope="module", params=["fp32", "int4"])
def bundle(request: pytest.FixtureRequest, checkpoint: Path) -> Path:
    path = checkpoint.with_name(request.param)
    if not path.exists():
        export_bundle(checkpoint, path, ExportOptions(request.param))
    return path


@pytest.fixture(scope="module")
def sides(bundle: Path) -> tuple[GraphRunner, GraphRunner]:
    """The standard graphs and their variants."""
    variant = variant_of(bundle)
    return GraphRunner(bundle, variant), VariantRunner(bundle, variant)


def variant_of(bundle: Path) -> str:
    return "fused-fp32" if bundle.name == "fp32" else "fused-int4-cpu"


def hidden(runner: GraphRunner, rows: int, batch: int = 1) -> Array:
    shape = (batch, rows, runner.spec.llm.width)
    return np.random.default_rng(rows).standard_normal(shape).astype(np.float32)


def assert_same(found: Array, expected: Array, what: str) -> None:
    difference = np.abs(found - expected).max()
    assert difference <= SAME_MATH_ABS, f"{what} differ by {difference:.2e}"


@pytest.mark.parametrize(("graph", "output"), [("trunk", "tap"), ("tail", "logits"), ("rpn", "scores")])
class TestOneSequence:
    def test_a_prompt_a_continuation_and_steps(
        self, sides: tuple[GraphRunner, GraphRunner], graph: str, output: str
    ) -> None:
        caches = [side.caches(graph, CACHE_ROWS) for side in sides]
        for start, rows in ((0, 9), (9, 5), (14, 1), (15, 1)):
            x = hidden(sides[0], rows)
            expected, found = (side.run(graph, x, own, start)[output] for side, own in zip(sides, caches, strict=True))
            used = start + rows
            if output == "scores":
                expected, found = expected[..., :used], found[..., :used]
            assert_same(found, expected, f"{output} of rows {start} to {used}")
            for name, cache in caches[0].items():
                assert_same(caches[1][name][:, :, :used], cache[:, :, :used], name)

    def test_stale_rows_behind_the_prompt_are_not_seen(
        self, sides: tuple[GraphRunner, GraphRunner], graph: str, output: str
    ) -> None:
        x = hidden(sides[0], 6)
        clean, dirty = (
            sides[1].run(graph, x, sides[1].caches(graph, CACHE_ROWS, fill=fill), 0)[output] for fill in (0.0, 9.0)
        )
        if output == "scores":
            clean, dirty = clean[..., :6], dirty[..., :6]
        assert_same(dirty, clean, output)

    def test_any_row_of_a_padded_prompt(self, sides: tuple[GraphRunner, GraphRunner], graph: str, output: str) -> None:
        x = hidden(sides[0], 7)
        last = None if graph == "trunk" else 3
        expected, found = (side.run(graph, x, side.caches(graph, CACHE_ROWS), 0, last)[output] for side in sides)
        used = 7 if output == "tap" else 4
        if output == "scores":
            expected, found = expected[..., :used], found[..., :used]
        assert_same(found[:, :used], expected[:, :used], output)


def test_steps_of_sequences_of_different_lengths(sides: tuple[GraphRunner, GraphRunner]) -> None:
    x, starts = hidden(sides[0], 1, batch=2), np.array([4, 11])
    expected, found = (
        side.run("trunk", x, side.caches("trunk", CACHE_ROWS, batch=2, fill=1.0), starts)["tap"] for side in sides
    )
    assert_same(found, expected, "taps")


def test_no_standard_attention_with_a_cache_is_left(bundle: Path) -> None:
    variant = variant_of(bundle)
    for graph in ("trunk", "rpn", "tail"):
        before = onnx.load(bundle / f"{graph}.{variant}.onnx", load_external_data=False)
        after = onnx.load_model_from_string(group_query_graph(bundle / f"{graph}.{variant}.onnx"))
        counts = [
            [node.op_type for node in model.graph.node].count(name)
            for model, name in ((before, "Attention"), (after, "GroupQueryAttention"), (after, "Attention"))
        ]
        assert counts == [counts[0], counts[0], 0]
        for side in ("input", "output"):
            names = [[value.name for value in getattr(model.graph, side)] for model in (before, after)]
            assert names[0] == names[1]


def test_a_graph_without_caches_is_refused(bundle: Path) -> None:
    with pytest.raises(BadInput, match=r"vision\..* has no attention with caches as the dialect fused writes it"):
        group_query_graph(bundle / f"vision.{variant_of(bundle)}.onnx")
