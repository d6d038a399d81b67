"""A bundle is checked on ONNX Runtime and on a simulated GPU; wrong engines fail the step that is there for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sdrpn.bundle.engine_manifest import ParityGate
from sdrpn.method.spec import ModelSpec
from sdrpn.reports.device_report import CheckResult, Subject
from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends import open_backend
from sdrpn.runtime.backends.runner import Array
from sdrpn.runtime.checkup import OpenedBundle, bundle_checks
from sdrpn.runtime.checkup.bundle_checks import BundleChecks, BundleOnDevice
from sdrpn.runtime.checkup.groups import LOOK_STEPS, STEP_COUNTS, CheckupRequest
from sdrpn.runtime.checkup.look_checks import LookChecks
from sdrpn.runtime.checkup.steps import run_steps
from sdrpn.runtime.engines.engine_set import engine_set
from sdrpn.runtime.engines.trial_run import smoke_test

pytest.importorskip("cuda.bindings.runtime")

from tests.runtime.engine_files import TARGET
from tests.runtime.fake_tensorrt import Compute
from tests.runtime.gpu import FakeGpu, fake_gpu, onnxruntime_compute


def checked(device: BundleOnDevice, *names: str) -> dict[str, CheckResult]:
    """All steps, or those that a test is about."""
    steps = [step for step in BundleChecks(device).steps() if not names or step.name in names]
    assert len(steps) == (len(names) or STEP_COUNTS["bundle"])
    return {result.name: result for result in run_steps("bundle", steps)}


def states(results: Mapping[str, CheckResult]) -> dict[str, str]:
    return {name: result.state for name, result in results.items()}


class OnFakeGpu:
    """Engines on the fakes."""

    note = None
    numerics = "fp32"

    def __init__(self, gpu: FakeGpu, free_bytes: list[int] | None = None) -> None:
        self.gpu = gpu
        self.subject = Subject("bundle", gpu.variant, "tensorrt", TARGET)
        self.opened: list[bool] = []
        self._free_bytes = free_bytes

    @property
    def spec(self) -> ModelSpec:
        return self.gpu.bundle.spec

    def open(self, *, cuda_graph: bool = True) -> Session:
        self.opened.append(cuda_graph)
        return self.gpu.session(EngineOptions(cuda_graph=cuda_graph))

    def open_reference(self) -> Session | None:
        return Session.open(self.gpu.bundle.path, backend="onnxruntime", variant=self.gpu.variant, threads=1)

    def gates(self) -> Iterator[ParityGate]:
        return smoke_test(engine_set(self.gpu.bundle, TARGET), self.gpu.backend(), open_backend("onnxruntime", 1))

    def free_bytes(self) -> int | None:
        return self._free_bytes.pop(0) if self._free_bytes else 1 << 34


def test_a_bundle_on_onnx_runtime(tiny_bundle: Path) -> None:
    results = checked(OpenedBundle(tiny_bundle))
    assert len(results) == STEP_COUNTS["bundle"]
    skipped = {name for name, state in states(results).items() if state == "skipped"}
    assert skipped == {"memory goes back"}
    assert not [name for name, state in states(results).items() if state == "failed"]
    # No other graphs have the same outputs: two at once are compared with each by itself.
    assert results["numbers, graph by graph"].detail == "8 of 8 gates passed"
    # The other graphs of the same precision are what an answer is compared with.
    assert "primitive-fp32 on onnxruntime" in results["a whole answer"].detail
    assert set(results["time"].figures) == {"first_token_ms", "token_ms"}
    assert results["the same question five times"].detail == "5 times the same bits"


def test_threads_are_those_of_every_session(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(Session, "open", lambda *arguments, **options: seen.append(options["threads"]))
    opened = OpenedBundle(tiny_bundle, threads=3)
    opened.open()
    opened.open_reference()
    assert seen == [3, 3]


def test_no_time_per_token_is_reported_of_answers_of_one(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_checks, "_NEW_TOKENS", 1)
    result = checked(OpenedBundle(tiny_bundle))["time"]
    assert set(result.figures) == {"first_token_ms"}
    assert result.detail.endswith("then no further one: the answer ended")


def test_good_engines_pass_every_step(tiny_bundle: Path, tmp_path: Path) -> None:
    device = OnFakeGpu(fake_gpu(tiny_bundle, tmp_path, max_context=256))
    results = checked(device)
    assert set(states(results).values()) == {"passed"}, results
    assert "token_without_graph_ms" in results["time"].figures
    assert False in device.opened
    assert device.gpu.cuda.violations == []


def spoilt(compute: Compute, graph: str, output: str, change: float, *, from_run: int = 0) -> Compute:
    """One output is off, from some run of the graph on."""
    runs = 0

    def wrong(name: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        nonlocal runs
        compute(name, feeds, results)
        if name == graph:
            runs += 1
            if runs > from_run:
                results[output][...] += change

    return wrong


def test_engines_that_compute_something_else_are_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = fake_gpu(tiny_bundle, tmp_path / "a").bundle
    compute = spoilt(onnxruntime_compute(bundle, "fused-fp32"), "rpn", "scores", 1.0)
    device = OnFakeGpu(fake_gpu(tiny_bundle, tmp_path / "b", compute=compute, max_context=256))
    results = checked(device, "numbers, graph by graph", "a whole answer")
    assert results["numbers, graph by graph"].state == "failed"
    assert "rpn smoke test" in results["numbers, graph by graph"].detail
    assert "RoI logits differ" in results["a whole answer"].detail


def test_answers_that_change_are_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = fake_gpu(tiny_bundle, tmp_path / "a").bundle
    drifting = onnxruntime_compute(bundle, "fused-fp32")
    runs = 0

    def compute(name: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        nonlocal runs
        drifting(name, feeds, results)
        if name == "vision":
            runs += 1
            results["image_embeds"][...] *= 1 + 1e-6 * runs

    device = OnFakeGpu(fake_gpu(tiny_bundle, tmp_path / "b", compute=compute, max_context=256))
    results = checked(device, "the same question five times")
    assert results["the same question five times"].detail.startswith("other bits: ")


def test_memory_that_stays_taken_is_noticed(tiny_bundle: Path, tmp_path: Path) -> None:
    # At the start, loaded; at the end.
    device = OnFakeGpu(fake_gpu(tiny_bundle, tmp_path, max_context=256), [1 << 34, 1 << 33, 1 << 33])
    results = checked(device, "load", "memory goes back")
    assert results["load"].figures["taken_bytes"] == 1 << 33
    assert "were not freed" in results["memory goes back"].detail


def test_a_second_session_that_cannot_fit_is_not_tried(tiny_bundle: Path, tmp_path: Path) -> None:
    # Before another one, and after.
    device = OnFakeGpu(fake_gpu(tiny_bundle, tmp_path, max_context=256), [9 << 30, 1 << 30])
    results = checked(device, "two sessions, closed in both orders")
    assert results["two sessions, closed in both orders"].state == "skipped"
    assert "another session takes" in results["two sessions, closed in both orders"].detail


def test_graphs_that_were_derived_are_compared_with_what_they_were_derived_from() -> None:
    opened = OpenedBundle("demo")
    kinds = [gate.kind for gate in opened.gates()]
    assert kinds.count("smoke test") == kinds.count("two at once") == kinds.count("finite") == 5


class LooksOnFakeGpu(OnFakeGpu):
    """Engines without a tail on the fakes."""

    def open(self, *, cuda_graph: bool = True) -> Session:
        variant = self.gpu.bundle.variant(self.gpu.variant).with_graphs(LOOKS)
        return Session(
            self.gpu.bundle,
            variant,
            self.gpu.backend(EngineOptions(cuda_graph=cuda_graph)),
            {name: self.gpu.engine(name) for name in LOOKS},
        )

    def open_reference(self) -> Session | None:
        return Session.open(
            self.gpu.bundle.path, backend="onnxruntime", variant=self.gpu.variant, threads=1, parts="look"
        )


LOOKS = ("vision", "trunk", "rpn")


def looked(device: BundleOnDevice, *names: str) -> dict[str, CheckResult]:
    steps = [step for step in LookChecks(device).steps() if not names or step.name in names]
    assert len(steps) == (len(names) or LOOK_STEPS)
    return {result.name: result for result in run_steps("bundle", steps)}


class TestLooks:
    def test_on_onnx_runtime(self, tiny_bundle: Path) -> None:
        results = looked(OpenedBundle(tiny_bundle, parts="look"))
        assert {name for name, state in states(results).items() if state == "skipped"} == {"memory goes back"}
        assert not [name for name, state in states(results).items() if state == "failed"]
        assert results["numbers, graph by graph"].detail == "6 of 6 gates passed"  # two of each graph; no tail
        assert "the map of primitive-fp32 on onnxruntime" in results["a whole look"].detail
        assert set(results["time"].figures) == {"look_ms", "second_look_ms"}
        assert results["the same question five times"].detail == "5 times the same bits"

    def test_on_engines(self, tiny_bundle: Path, tmp_path: Path) -> None:
        results = looked(LooksOnFakeGpu(fake_gpu(tiny_bundle, tmp_path, max_context=256)), "load", "a whole look")
        assert set(states(results).values()) == {"passed"}, results

    def test_engines_that_look_elsewhere_are_noticed(self, tiny_bundle: Path, tmp_path: Path) -> None:
        bundle = fake_gpu(tiny_bundle, tmp_path / "a").bundle
        compute = spoilt(onnxruntime_compute(bundle, "fused-fp32"), "rpn", "scores", 1.0)
        device = LooksOnFakeGpu(fake_gpu(tiny_bundle, tmp_path / "b", compute=compute, max_context=256))
        results = looked(device, "a whole look")
        assert results["a whole look"].state == "failed"
        assert "RoI maps differ" in results["a whole look"].detail

    def test_counted_before_they_run(self) -> None:
        assert CheckupRequest("demo", parts="look").step_count == CheckupRequest().step_count + LOOK_STEPS
