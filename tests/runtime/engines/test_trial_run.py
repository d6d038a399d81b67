"""New engines are run once: on a simulated GPU, right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.engine_manifest import ParityGate
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.runtime.backends import open_backend
from sdrpn.runtime.backends.runner import Array
from sdrpn.runtime.engines.engine_set import engine_set
from sdrpn.runtime.engines.trial_run import smoke_test
from tests.runtime.engine_files import TARGET
from tests.runtime.fake_tensorrt import Compute
from tests.runtime.gpu import FakeGpu, bf16_compute, fake_gpu, onnxruntime_compute

GRAPHS = ("vision", "trunk", "rpn", "tail")
KINDS = ("finite", "smoke test", "two at once")  # the RPN takes one sequence at a time


def tried(gpu: FakeGpu, *, compare: bool = True) -> dict[tuple[str, str], ParityGate]:
    reference = open_backend("onnxruntime", 1) if compare else None
    gates = smoke_test(engine_set(gpu.bundle, TARGET), gpu.backend(), reference)
    return {(gate.graph, gate.kind): gate for gate in gates}


def spoilt(compute: Compute, graph: str, output: str, value: float) -> Compute:
    """One entry of one output is something else."""

    def wrong(name: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        compute(name, feeds, results)
        if name == graph:
            results[output].reshape(-1)[3] = value

    return wrong


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32", "primitive-fp32-kv-int8", "primitive-fp32-kv-fp8"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
def test_good_engines_pass(tiny_bundle: Path, coded_bundle: Path, tmp_path: Path, variant: str, flavour: str) -> None:
    gpu = fake_gpu(coded_bundle if "-kv-" in variant else tiny_bundle, tmp_path, variant=variant, flavour=flavour)
    gates = tried(gpu)
    assert set(gates) == {(graph, kind) for graph in GRAPHS for kind in KINDS if (graph, kind) != ("rpn", KINDS[2])}
    assert all(gate.ok for gate in gates.values()), gates
    # Both profiles of trunk and tail were run.
    assert {(run.graph, run.profile) for run in gpu.trt.executions} == {
        *((graph, profile) for graph in ("trunk", "tail") for profile in (0, 1)),
        ("vision", 0),
        ("rpn", 0),
    }
    assert gpu.cuda.violations == []


def test_engines_in_bf16_are_looked_at_for_what_is_not_finite(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export_bundle(tiny_checkpoint, tmp_path / "source", ExportOptions("bf16"))
    compute = bf16_compute(open_bundle(tmp_path / "source"), "fused-bf16")
    gpu = fake_gpu(tmp_path / "source", tmp_path / "a", variant="fused-bf16", compute=compute)
    assert all(gate.ok for gate in tried(gpu, compare=False).values())
    infinite = spoilt(compute, "trunk", "key_cache.0_out", 0x7F80)  # as bf16 has it
    gates = tried(fake_gpu(tmp_path / "source", tmp_path / "b", variant="fused-bf16", compute=infinite), compare=False)
    assert [gate.graph for gate in gates.values() if not gate.ok] == ["trunk"]


@pytest.mark.parametrize(("graph", "output"), [("trunk", "tap"), ("rpn", "scores"), ("tail", "logits")])
def test_wrong_numbers_are_noticed(tiny_bundle: Path, tmp_path: Path, graph: str, output: str) -> None:
    compute = spoilt(
        onnxruntime_compute(fake_gpu(tiny_bundle, tmp_path / "a").bundle, "fused-fp32"), graph, output, 9.0
    )
    gates = tried(fake_gpu(tiny_bundle, tmp_path / "b", compute=compute))
    failed = [gate for gate in gates.values() if not gate.ok]
    assert [(gate.graph, gate.kind) for gate in failed] == [(graph, "smoke test")]
    assert failed[0].tensor.startswith(f"{output}, ")
    assert isinstance(failed[0].found, float)
    assert failed[0].found > 0.1


def test_what_is_not_finite_is_noticed_without_a_comparison(tiny_bundle: Path, tmp_path: Path) -> None:
    compute = onnxruntime_compute(fake_gpu(tiny_bundle, tmp_path / "a").bundle, "fused-fp32")
    gpu = fake_gpu(tiny_bundle, tmp_path / "b", compute=spoilt(compute, "vision", "image_embeds", np.nan))
    gates = tried(gpu, compare=False)
    assert {kind for _, kind in gates} == {"finite", "two at once"}
    assert [gate.graph for gate in gates.values() if not gate.ok] == ["vision"]
    both = tried(gpu)
    assert not both["vision", "smoke test"].ok


@pytest.mark.parametrize(("graph", "output"), [("trunk", "tap"), ("tail", "logits")])
def test_as_many_as_it_was_built_for_are_tried(tiny_bundle: Path, tmp_path: Path, graph: str, output: str) -> None:
    right = onnxruntime_compute(fake_gpu(tiny_bundle, tmp_path / "a").bundle, "fused-fp32")

    def wrong_for_four(name: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        right(name, feeds, results)
        if name == graph and len(results[output]) == 4:
            results[output][3] += 1

    gates = tried(fake_gpu(tiny_bundle, tmp_path / "b", compute=wrong_for_four, max_batch=4))
    (failed,) = [gate for gate in gates.values() if not gate.ok]
    assert (failed.graph, failed.kind, failed.tensor) == (graph, "two at once", f"{output}, one row, 4 of 4")


class TestTwoAtOnce:
    """Two pictures, and two sequences in a decode step: each has to come out as it does alone."""

    @pytest.mark.parametrize(("graph", "output"), [("vision", "image_embeds"), ("trunk", "tap"), ("tail", "logits")])
    @pytest.mark.parametrize("entry", [0, 1])
    def test_an_engine_that_is_wrong_for_two_is_noticed(
        self, tiny_bundle: Path, tmp_path: Path, graph: str, output: str, entry: int
    ) -> None:
        """As a library was with another vision transformer: right for one, wrong for a batch, and no complaint."""
        right = onnxruntime_compute(fake_gpu(tiny_bundle, tmp_path / "a").bundle, "fused-fp32")

        def wrong_for_two(name: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
            right(name, feeds, results)
            if name == graph and len(results[output]) == 2:
                results[output][entry] += 1

        gates = tried(fake_gpu(tiny_bundle, tmp_path / "b", compute=wrong_for_two))
        (failed,) = [gate for gate in gates.values() if not gate.ok]
        assert (failed.graph, failed.kind) == (graph, "two at once")
        assert failed.tensor.startswith(f"{output}, ")
        assert failed.tensor.endswith(f"{entry + 1} of 2")

    def test_without_a_reference_as_well(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gates = tried(fake_gpu(tiny_bundle, tmp_path), compare=False)
        assert {kind for _, kind in gates} == {"finite", "two at once"}

    def test_an_engine_for_one_at_a_time_is_not_asked(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gates = tried(fake_gpu(tiny_bundle, tmp_path, max_batch=1))
        assert {graph for graph, kind in gates if kind == "two at once"} == {"vision"}


def test_every_context_is_tried(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, variant="primitive-fp32", shorter_contexts=(32,))
    gates = tried(gpu)
    assert all(gate.ok for gate in gates.values()), gates
    assert {run.profile for run in gpu.trt.executions if run.graph == "tail"} == {0, 1, 2, 3}
    assert {run.shapes["key_cache.0"][2] for run in gpu.trt.executions if run.graph == "rpn"} == {32, 128}


def test_a_context_that_computes_nonsense_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    right = onnxruntime_compute(fake_gpu(tiny_bundle, tmp_path / "a").bundle, "primitive-fp32")

    def wrong_when_short(name: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        right(name, feeds, results)
        if name == "trunk" and feeds["key_cache.0"].shape[2] == 32:
            results["tap"][:] += 1

    gpu = fake_gpu(
        tiny_bundle, tmp_path / "b", variant="primitive-fp32", shorter_contexts=(32,), compute=wrong_when_short
    )
    gates = tried(gpu)
    (failed,) = [gate for gate in gates.values() if not gate.ok]
    assert (failed.graph, failed.kind) == ("trunk", "smoke test")
    assert failed.tensor.endswith(" at 32")
