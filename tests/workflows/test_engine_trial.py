"""New engines on a machine that they fit: the good ones are kept, and what was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.bundle.engine_manifest import engine_paths, read_engine_manifest
from sdrpn.errors import RunFailed
from sdrpn.host.machine import read_machine
from sdrpn.runtime import EngineOptions
from sdrpn.runtime.backends.runner import Array
from sdrpn.runtime.backends.tensorrt import TensorRtBackend
from sdrpn.runtime.engines import preflight
from sdrpn.runtime.engines.platform import Platform
from sdrpn.workflows import engine_trial
from tests.runtime.engine_files import TARGET, platform, rewrite
from tests.runtime.gpu import FakeGpu, fake_gpu, onnxruntime_compute

GRAPHS = ("vision", "trunk", "rpn", "tail")
Machine = Callable[[FakeGpu], None]


class Silent:
    def validity(self, path: Path) -> None:
        return None


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with the simulated GPU, which the engines fit."""

    def use(gpu: FakeGpu) -> None:
        monkeypatch.setattr(engine_trial, "read_platform", lambda device=0: platform("tensorrt"))
        monkeypatch.setattr(preflight, "open_library", lambda flavour: Silent())
        monkeypatch.setattr(engine_trial, "open_tensorrt", lambda flavour, options, host_code: gpu.backend(options))

    return use


def manifests(gpu: FakeGpu) -> list[str]:
    return [graph for graph in GRAPHS if engine_paths(gpu.bundle.path, TARGET, graph)[1].exists()]


def test_what_was_found_is_kept(tiny_bundle: Path, tmp_path: Path, fitting: Machine) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    trial = engine_trial.try_engines(gpu.bundle, TARGET, GRAPHS)
    assert (trial.state, len(trial.gates)) == ("passed", 11)
    for graph in GRAPHS:
        kept = read_engine_manifest(engine_paths(gpu.bundle.path, TARGET, graph)[1]).parity
        kinds = ["finite", "smoke test", *(["two at once"] if graph != "rpn" else [])]
        assert [(gate.graph, gate.kind, gate.ok) for gate in kept] == [(graph, kind, True) for kind in kinds]


def test_kernels_that_were_not_judged_are_named(tiny_bundle: Path, tmp_path: Path, fitting: Machine) -> None:
    """Right numbers do not make good kernels."""
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    for graph in ("trunk", "tail"):
        rewrite(gpu.bundle.path, graph, kernel_gate=("not judged: the listing has no constants",))
    trial = engine_trial.try_engines(gpu.bundle, TARGET, GRAPHS)
    assert trial.state == "passed (the kernels of trunk, tail were not judged)"


def test_only_what_is_new_is_tried(tiny_bundle: Path, tmp_path: Path, fitting: Machine) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    trial = engine_trial.try_engines(gpu.bundle, TARGET, ["tail"])
    assert {gate.graph for gate in trial.gates} == {"tail"}
    assert engine_trial.try_engines(gpu.bundle, TARGET, []).state == "nothing new to try"


def test_an_engine_that_computes_nonsense_is_not_kept(tiny_bundle: Path, tmp_path: Path, fitting: Machine) -> None:
    right = onnxruntime_compute(fake_gpu(tiny_bundle, tmp_path / "a").bundle, "fused-fp32")

    def wrong(graph: str, feeds: Mapping[str, Array], results: Mapping[str, Array]) -> None:
        right(graph, feeds, results)
        if graph == "tail":
            results["logits"][:] += 2

    gpu = fake_gpu(tiny_bundle, tmp_path / "b", compute=wrong)
    fitting(gpu)
    with pytest.raises(RunFailed, match=r"tail failed its smoke test on this GPU: smoke test of logits, .*is"):
        engine_trial.try_engines(gpu.bundle, TARGET, GRAPHS)
    assert manifests(gpu) == ["vision", "trunk", "rpn"]


def test_an_engine_that_does_not_load_is_not_kept(tiny_bundle: Path, tmp_path: Path, fitting: Machine) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    gpu.trt.refusals.add("deserialize_cuda_engine")
    with pytest.raises(RunFailed, match="the engines do not run on this GPU and were not kept: tensorrt refused"):
        engine_trial.try_engines(gpu.bundle, TARGET, GRAPHS)
    assert manifests(gpu) == []


def test_a_machine_that_they_do_not_fit(tiny_bundle: Path, tmp_path: Path, fitting: Machine) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    for graph in GRAPHS:
        rewrite(gpu.bundle.path, graph, compute_capabilities=("SM120",))
    trial = engine_trial.try_engines(gpu.bundle, TARGET, GRAPHS)
    assert trial.state == "not tried: UNSUPPORTED_CC: RTX 4090 is SM89"
    assert manifests(gpu) == list(GRAPHS)


def test_where_memory_is_short_nothing_is_compared(
    tiny_bundle: Path, tmp_path: Path, fitting: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    small = dataclasses.replace(read_machine(), memory_available_bytes=400_000_000)
    monkeypatch.setattr(engine_trial, "read_machine", lambda: small)
    trial = engine_trial.try_engines(gpu.bundle, TARGET, GRAPHS)
    assert trial.state == "passed, not compared: there is not enough memory for ONNX Runtime"
    assert {gate.kind for gate in trial.gates} == {"finite", "two at once"}


def test_they_are_tried_on_the_gpu_that_they_were_built_on(
    tiny_bundle: Path, tmp_path: Path, fitting: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path)
    fitting(gpu)
    asked: list[int] = []

    def read(device: int = 0) -> Platform:
        asked.append(device)
        return platform("tensorrt")

    def opened(flavour: str, options: EngineOptions, *, host_code: bool) -> TensorRtBackend:
        asked.append(options.device)
        return gpu.backend()

    monkeypatch.setattr(engine_trial, "read_platform", read)
    monkeypatch.setattr(engine_trial, "open_tensorrt", opened)
    assert engine_trial.try_engines(gpu.bundle, TARGET, ["vision"], device=1).state == "passed"
    assert engine_trial.try_engines(gpu.bundle, TARGET, ["vision"]).state == "passed"
    assert asked == [1, 1, 0, 0]
