"""ONNX Runtime on a GPU that is not there: what it would do quietly, slowly or not at all is refused before it does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from sdrpn.bundle.bundle import GraphInfo, open_bundle
from sdrpn.errors import BadInput, MissingDependency, RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime.backends import backend_info, onnxruntime_cuda, open_backend
from sdrpn.runtime.select import choose_backend, graph_variant

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@dataclass
class Node:
    op_type: str


@dataclass
class Part:
    ep_name: str
    nodes: list[Node]

    def get_nodes(self) -> list[Node]:
        return self.nodes


@dataclass
class Tensor:
    name: str
    shape: tuple[int | str, ...]


@dataclass
class Machine:
    """What the library finds, and was asked."""

    providers: list[str] = field(default_factory=lambda: [CUDA, CPU])
    on_cpu: tuple[str, ...] = ("Shape", "Range")
    preloaded: int = 0
    devices: list[str] = field(default_factory=list)
    graph: GraphInfo | None = None

    def session(self, path: str, options: Any, providers: list[Any]) -> Any:
        machine = self
        self.devices.append(providers[0][1]["device_id"])
        recorded = options.get_session_config_entry("session.record_ep_graph_assignment_info")
        assert recorded == "1"

        class Loaded:
            def get_inputs(self) -> list[Tensor]:
                return [Tensor(tensor.name, tensor.dims) for tensor in machine.graph.inputs] if machine.graph else []

            def get_outputs(self) -> list[Tensor]:
                return [Tensor(tensor.name, tensor.dims) for tensor in machine.graph.outputs] if machine.graph else []

            def get_providers(self) -> list[str]:
                return machine.providers

            def get_provider_graph_assignment_info(self) -> list[Part]:
                return [Part(CUDA, [Node("Attention")]), *(Part(CPU, [Node(name)]) for name in machine.on_cpu)]

        return Loaded()

    def preload_dlls(self) -> None:
        self.preloaded += 1
        print("Failed to load libcudnn.so.9")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"ELF\0libc.so.6\0libcudart.so.99\0libm.so.6\0")
    monkeypatch.setattr(onnxruntime, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", found.session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", found.preload_dlls)
    onnxruntime_cuda._preload.cache_clear()
    return found


def load(machine: Machine, bundle_path: Path, device: int = 0) -> None:
    bundle = open_bundle(bundle_path)
    graph = bundle.variant("fused-fp32").graphs["trunk"]
    machine.graph = graph
    open_backend("onnxruntime-cuda", device=device).load(graph, bundle.file(graph.file))


def test_libraries_of_pip_are_loaded_before(
    machine: Machine, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(machine, tiny_bundle)
    load(machine, tiny_bundle, device=1)
    assert machine.preloaded == 1
    assert machine.devices == ["0", "1"]
    assert capsys.readouterr().out == ""  # what it prints would be taken for the answer


def test_a_provider_that_fell_back_to_the_cpu(
    machine: Machine, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.providers = [CPU]
    expected = r"cannot use CUDA \(libcudart.so.99: cannot open.*\); install what it needs: pip uninst"
    with pytest.raises(MissingDependency, match=expected):
        load(machine, tiny_bundle)
    monkeypatch.setattr(onnxruntime_cuda, "_why_not_loaded", lambda: None)
    with pytest.raises(MissingDependency, match=r"cannot use CUDA \(Failed to load libcudnn.so.9\)"):
        load(machine, tiny_bundle)


def test_operators_that_it_leaves_to_the_cpu(machine: Machine, tiny_bundle: Path) -> None:
    machine.on_cpu = ("Shape", "Attention", "Attention", "TensorScatter")
    with pytest.raises(
        RunFailed, match=r"trunk: .* has no CUDA kernels for 2 x Attention, 1 x TensorScatter and would"
    ):
        load(machine, tiny_bundle)


def test_what_doctor_says_of_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "libcudart.so.99: cannot open" in (onnxruntime_cuda.cuda_fault() or "")
    monkeypatch.setattr(onnxruntime_cuda, "_why_not_loaded", lambda: None)
    assert onnxruntime_cuda.cuda_fault() is None
    assert machine.preloaded == 1
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    assert onnxruntime_cuda.cuda_fault() == "ONNX Runtime 1.24.4 computes attention on the CPU"


def test_a_release_without_attention_on_the_gpu(
    machine: Machine, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(MissingDependency, match=r"needs onnxruntime-gpu 1\.27 or newer, .*; installed is 1\.24\.4"):
        load(machine, tiny_bundle)


@pytest.mark.usefixtures("machine")
def test_the_dialect_primitive_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(
        BadInput, match="primitive-fp32 cannot be used with onnxruntime-cuda, which would copy all keys"
    ):
        Session.open(tiny_bundle, backend="onnxruntime-cuda", variant="primitive-fp32")


def test_the_variant_that_suits_a_gpu(precise_bundle: Path) -> None:
    bundle = open_bundle(precise_bundle)
    assert graph_variant(bundle, info=backend_info("onnxruntime-cuda")).name == "fused-fp16"
    assert graph_variant(bundle, "fused-fp32", info=backend_info("onnxruntime-cuda")).name == "fused-fp32"
    assert graph_variant(bundle) == bundle.variant()


@pytest.fixture(scope="module")
def precise_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sdrpn.export import ExportOptions, export_bundle

    path = tmp_path_factory.mktemp("precise") / "bundle"
    for options in (ExportOptions(), ExportOptions("fp16"), ExportOptions("fp16", "primitive")):
        export_bundle(tiny_checkpoint, path, options)
    return path


def test_a_bundle_without_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from sdrpn.export import ExportOptions, export_bundle

    export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions("fp16", "primitive"))
    with pytest.raises(
        BadInput, match=r"as primitive-fp16 cannot be used with onnxruntime-cuda, .*, or add one: sdrpn export"
    ):
        graph_variant(open_bundle(tmp_path / "bundle"), info=backend_info("onnxruntime-cuda"))


def test_the_provider_that_is_gone(tiny_bundle: Path) -> None:
    with pytest.raises(
        BadInput, match=r"backend onnxruntime-tensorrt was removed: .*; use tensorrt with the engines of"
    ):
        choose_backend(open_bundle(tiny_bundle), "onnxruntime-tensorrt")
