"""What a comparison of graphs sees, and what it must not call a difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, TensorInfo, Variant, open_bundle
from sdrpn.bundle.signatures import GraphSignature, expected_signatures
from sdrpn.bundle.tolerances import TOLERANCES, tolerances_of
from sdrpn.checkpoint import open_checkpoint
from sdrpn.compare.graphs import (
    Check,
    compare_embedding,
    compare_graphs,
    compare_rotary,
    relative_difference,
    until_failed,
)
from sdrpn.errors import BadInput, RunFailed
from sdrpn.method.rope import RotaryFrequencies
from sdrpn.method.spec import ModelSpec
from sdrpn.model import SdRpnModel, model_from_checkpoint
from sdrpn.model.layers import frequencies
from sdrpn.runtime.backends import open_backend
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.runner import Array, Runner

DIALECTS = ("fused", "primitive")
Results = dict[str, Array]
Run = Callable[[str, Mapping[str, Array]], Results]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> SdRpnModel:
    with open_checkpoint(tiny_checkpoint) as source:
        return model_from_checkpoint(source)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module", params=DIALECTS)
def variant(request: pytest.FixtureRequest, bundle: Bundle) -> Variant:
    return bundle.variant(f"{request.param}-fp32")


@pytest.fixture(scope="module")
def run(bundle: Bundle, variant: Variant) -> Iterator[Run]:
    backend = open_backend("onnxruntime", 1)
    runners: dict[str, Runner] = {
        name: backend.load(graph, bundle.file(graph.file)) for name, graph in variant.graphs.items()
    }
    yield lambda name, feeds: run_on_arrays(backend, runners[name], feeds)
    for runner in runners.values():
        runner.close()


def changed(run: Run, graph: str, change: Callable[[Results], object]) -> Run:
    """`run`, with something done to the results of one graph."""

    def altered(name: str, feeds: Mapping[str, Array]) -> Results:
        results = run(name, feeds)
        if name == graph:
            change(results)
        return results

    return altered


def checks_of(model: SdRpnModel, variant: Variant, run: Run, max_context: int = 256) -> list[Check]:
    return list(compare_graphs(model, variant, run, max_context=max_context))


def failed(checks: list[Check]) -> set[tuple[str, str]]:
    return {(check.graph, check.kind) for check in checks if not check.ok}


def with_tap(variant: Variant, **changes: object) -> Variant:
    """The trunk's output declared otherwise."""
    trunk = variant.graphs["trunk"]
    outputs = tuple(
        dataclasses.replace(tensor, **changes) if tensor.name == "tap" else tensor  # type: ignore[arg-type]
        for tensor in trunk.outputs
    )
    return dataclasses.replace(variant, graphs={**variant.graphs, "trunk": dataclasses.replace(trunk, outputs=outputs)})


def trunk_checks(model: SdRpnModel, variant: Variant) -> list[Check]:
    """Those of the trunk, which must not be run."""

    def run(name: str, feeds: Mapping[str, Array]) -> Results:
        assert name != "trunk"
        return {}

    return [check for check in compare_graphs(model, variant, run, max_context=256) if check.graph == "trunk"]


class TestGraphs:
    def test_a_good_bundle_passes(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        checks = checks_of(model, variant, run)
        assert failed(checks) == set()
        for graph in ("vision", "trunk", "rpn", "tail"):
            kinds = list(dict.fromkeys(check.kind for check in checks if check.graph == graph))
            assert kinds == ["names", "axes", "shapes", "values"]

    def test_every_output_is_compared_in_a_prefill_a_chunk_and_a_row(
        self, model: SdRpnModel, variant: Variant, run: Run
    ) -> None:
        compared = {(check.graph, check.tensor) for check in checks_of(model, variant, run) if check.kind == "values"}
        for graph in ("trunk", "rpn", "tail"):
            for tensor in variant.graphs[graph].outputs:
                for trial in ("prefill", "second chunk", "one row", "one row at position 255"):
                    assert (graph, f"{tensor.name}, {trial}") in compared

    @pytest.mark.parametrize("max_context", [2, 3, 17, 40, 41, 42])
    def test_a_short_context_is_not_overrun(
        self, model: SdRpnModel, variant: Variant, run: Run, max_context: int
    ) -> None:
        rows, tables = set[int](), list[Array]()

        def watched(name: str, feeds: Mapping[str, Array]) -> Results:
            if name != "vision":
                rows.update(feeds["row_index"].ravel().tolist())
                tables.append(feeds["rope_cos"].reshape(-1, feeds["rope_cos"].shape[-1]))
            return run(name, feeds)

        assert failed(checks_of(model, variant, watched, max_context)) == set()
        assert rows == set(range(min(max_context, 41)))  # one more than stand side by side
        cos, _ = frequencies(model.spec.llm).tables(np.arange(max_context))
        seen = np.unique(np.concatenate(tables), axis=0)
        assert {tuple(row) for row in seen} <= {tuple(row) for row in cos}
        assert tuple(cos[-1]) in {tuple(row) for row in seen}

    @pytest.mark.parametrize("graph", ["vision", "trunk", "rpn", "tail"])
    def test_a_wrong_value_is_found(self, model: SdRpnModel, variant: Variant, run: Run, graph: str) -> None:
        first = variant.graphs[graph].outputs[0].name

        def change(results: Results) -> None:
            results[first] = results[first].copy()
            results[first].flat[0] += 0.05

        assert failed(checks_of(model, variant, changed(run, graph, change))) == {(graph, "values")}

    def test_a_value_that_is_no_number_is_found(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        checks = checks_of(model, variant, changed(run, "tail", lambda results: results["logits"].fill(np.nan)))
        assert {check.found for check in checks if not check.ok} == {"not a finite number"}

    def test_a_cache_changed_beside_its_new_rows_is_found(
        self, model: SdRpnModel, bundle: Bundle, variant: Variant, run: Run
    ) -> None:
        if variant.dialect != "fused":
            pytest.skip("only the new rows are an output")

        def change(results: Results) -> None:
            results["value_cache.1_out"][:, :, -1] += 1  # a row that nothing was written to

        assert failed(checks_of(model, variant, changed(run, "trunk", change))) == {("trunk", "values")}

    def test_a_wrong_shape_leaves_the_values_out(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        def change(results: Results) -> None:
            results["logits"] = results["logits"][:, 1:]

        checks = checks_of(model, variant, changed(run, "tail", change))
        assert failed(checks) == {("tail", "shapes")}
        assert not [check for check in checks if (check.graph, check.kind) == ("tail", "values")]
        (wrong,) = [check for check in checks if not check.ok]
        assert (wrong.found, wrong.expected) == ("(1, 95)", "(1, 96)")

    def test_an_output_that_does_not_come_is_found(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        checks = checks_of(model, variant, changed(run, "trunk", lambda results: results.pop("tap")))
        assert failed(checks) == {("trunk", "shapes")}

    def test_a_graph_that_does_not_run_fails_by_itself(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        def broken(name: str, feeds: Mapping[str, Array]) -> Results:
            if name == "rpn":
                raise RunFailed("no kernel for it")
            return run(name, feeds)

        checks = checks_of(model, variant, broken)
        assert failed(checks) == {("rpn", "shapes")}
        assert [check.found for check in checks if not check.ok] == ["did not run: no kernel for it"]


class TestDeclarations:
    def test_a_renamed_output(self, model: SdRpnModel, variant: Variant) -> None:
        (wrong,) = [check for check in trunk_checks(model, with_tap(variant, name="hidden")) if not check.ok]
        assert (wrong.kind, wrong.tensor) == ("names", "outputs in the manifest")
        assert (wrong.found, wrong.expected) == ("hidden", "tap")

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"dims": ("batch", "rows", 64)}, "float32 (batch, rows, 64)"),
            ({"dims": (1, "sequence", 64)}, "float32 (1, sequence, 64)"),
            ({"dims": ("batch", "sequence")}, "float32 (batch, sequence)"),
            ({"dtype": "float16"}, "float16 (batch, sequence, 64)"),
        ],
    )
    def test_a_wrong_axis(self, model: SdRpnModel, variant: Variant, change: dict[str, object], found: str) -> None:
        (wrong,) = [check for check in trunk_checks(model, with_tap(variant, **change)) if not check.ok]
        assert (wrong.kind, wrong.tensor, wrong.found) == ("axes", "tap in the manifest", found)
        assert wrong.expected == "float32 (batch, sequence, 64)"

    def test_the_files_own_declarations_count_too(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        files = {name: GraphSignature.of(graph.inputs, graph.outputs) for name, graph in variant.graphs.items()}
        files["tail"] = GraphSignature.of(files["tail"].inputs.values(), [TensorInfo("logits", "float32", (1, 96))])
        checks = list(compare_graphs(model, variant, run, max_context=256, files=files))
        assert failed(checks) == {("tail", "names")}
        assert [check.tensor for check in checks if not check.ok] == ["outputs in the file"]

    def test_a_missing_and_an_unknown_graph(self, model: SdRpnModel, variant: Variant, run: Run) -> None:
        graphs = {name: graph for name, graph in variant.graphs.items() if name != "rpn"}
        altered = dataclasses.replace(
            variant, graphs=graphs | {"head": dataclasses.replace(variant.graphs["rpn"], name="head")}
        )
        assert failed(checks_of(model, altered, run)) == {("rpn", "names"), ("head", "names")}

    def test_an_unknown_dialect_or_precision(self, tiny_spec: ModelSpec) -> None:
        with pytest.raises(BadInput, match=r"a fused-int3 variant is unknown; expected fused or primitive, in fp32"):
            expected_signatures(tiny_spec, "fused", "int3")
        with pytest.raises(BadInput, match=r"precision 'int3' has no limits; expected one of fp32, fp16"):
            tolerances_of("int3")


class TestEmbedding:
    def test_the_whole_table_is_read(self, model: SdRpnModel, variant: Variant) -> None:
        table = model.embed.weight.numpy()
        (check,) = compare_embedding(model, variant, lambda ids: table[list(ids)])
        assert (check.ok, check.found) == (True, 0.0)

    def test_one_wrong_entry_is_found(self, model: SdRpnModel, variant: Variant) -> None:
        table = model.embed.weight.numpy().copy()
        table[-1, -1] += 0.1
        (check,) = compare_embedding(model, variant, lambda ids: table[list(ids)])
        assert (check.ok, check.graph, check.kind) == (False, "embedding", "values")


class TestRotary:
    def test_those_of_the_bundle_are_the_models(self, model: SdRpnModel, bundle: Bundle, variant: Variant) -> None:
        (check,) = compare_rotary(model, variant, bundle.manifest.rotary)
        assert (check.ok, check.found) == (True, 0.0)

    def test_one_unit_in_the_last_place_is_as_good_and_more_is_not(
        self, model: SdRpnModel, bundle: Bundle, variant: Variant
    ) -> None:
        inverse = np.array(bundle.manifest.rotary.inverse, np.float32)
        for steps, ok in ((1, True), (8, False)):
            moved = inverse.copy()
            moved[3] += steps * np.spacing(moved[3])
            (check,) = compare_rotary(model, variant, RotaryFrequencies(tuple(map(float, moved))))
            assert (check.ok, check.graph, check.kind) == (ok, "rotary", "values")

    def test_another_amplitude_is_found(self, model: SdRpnModel, bundle: Bundle, variant: Variant) -> None:
        (check,) = compare_rotary(model, variant, RotaryFrequencies(bundle.manifest.rotary.inverse, 1.1))
        assert not check.ok


class TestDifference:
    @pytest.mark.parametrize(
        ("found", "expected", "difference"),
        [
            ([[0.0]], [[0.0]], 0.0),
            ([[0.5]], [[0.25]], 0.25),  # small values: absolute
            ([[90.0]], [[100.0]], 0.1),
            ([[900.0, 0.0]], [[1000.0, 10.0]], 0.1),
            ([[1000.0], [1.0]], [[1000.0], [2.0]], 0.5),  # the large row excuses nothing in the other
            ([[np.nan, 1.0]], [[0.0, 1.0]], np.inf),
            ([[np.inf]], [[0.0]], np.inf),
        ],
    )
    def test_relative_to_the_row(
        self, found: list[list[float]], expected: list[list[float]], difference: float
    ) -> None:
        assert relative_difference(np.array(found), np.array(expected)) == difference

    def test_nothing_differs_in_nothing(self) -> None:
        assert relative_difference(np.zeros((1, 4, 0)), np.zeros((1, 4, 0))) == 0

    def test_limits_grow_with_less_precision(self) -> None:
        for field in ("values", "roi_map", "token_logit"):
            assert getattr(TOLERANCES["fp32"], field) < getattr(TOLERANCES["fp16"], field)
        assert TOLERANCES["fp32"].roi_cosine > TOLERANCES["fp16"].roi_cosine


def test_stages_after_a_failed_one_are_not_even_begun() -> None:
    good = Check("v", "g", "names", "", "", "")
    bad = dataclasses.replace(good, kind="axes", ok=False)

    def refuse() -> Iterator[Check]:
        raise AssertionError("begun")
        yield good

    assert list(until_failed([good], [bad, good], refuse())) == [good, bad, good]
