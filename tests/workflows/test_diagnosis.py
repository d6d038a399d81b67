"""What works on made-up machines, and what is said of what does not."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Callable

import pytest

from sdrpn.host.libraries import read_extras
from sdrpn.host.machine import Machine
from sdrpn.runtime.backends import onnxruntime_info
from sdrpn.workflows import diagnosis as workflow
from tests.workflows.machines import GPU_PC, ORIN, PC

Setting = Callable[..., workflow.Diagnosis]


@pytest.fixture
def diagnosis_of(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Diagnose a made-up machine: which distributions are there, which providers ONNX Runtime has."""

    def diagnose(
        machine: Machine, *, versions: dict[str, str], providers: list[str] | None = None
    ) -> workflow.Diagnosis:
        onnxruntime = types.SimpleNamespace(get_available_providers=lambda: providers or ["CPUExecutionProvider"])
        monkeypatch.setattr(workflow, "read_machine", lambda: machine)
        monkeypatch.setattr(workflow, "read_extras", lambda: read_extras(version_of=versions.get))
        monkeypatch.setattr(workflow, "installed_version", versions.get)
        monkeypatch.setattr(workflow, "_own_version", versions.get)
        monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime)
        return workflow.diagnose_machine()

    return diagnose


BASE_VERSIONS = {
    "numpy": "2.1.0",
    "pillow": "11.0.0",
    "onnxruntime": "1.25.1",
    "tokenizers": "0.21.0",
    "jinja2": "3.1.6",
    "rich": "13.9.0",
    "packaging": "24.0",
    "argcomplete": "3.1.1",
}


def ability(diagnosis: workflow.Diagnosis, name: str) -> workflow.Ability:
    return next(found for found in diagnosis.abilities if found.name == name)


class TestAbilities:
    def test_a_base_install_answers_on_the_cpu_only(self, diagnosis_of: Setting) -> None:
        diagnosis = diagnosis_of(PC, versions=BASE_VERSIONS)
        ready = [found.name for found in diagnosis.abilities if found.ready and not found.name.startswith("native")]
        assert ready == ["ask, on the CPU"]
        assert diagnosis.notes == ()

    @pytest.mark.parametrize(
        ("compiled", "ready", "detail"),
        [
            ((), False, "was not compiled: Pillow is used"),
            (("_native",), True, "compiled: resize; JPEG by parts: was not compiled; CUDA kernels: was not compiled"),
            (("_native", "_native_jpeg", "_native_cuda"), True, "compiled: resize, JPEG by parts, CUDA kernels"),
        ],
    )
    def test_the_native_image_path(
        self, monkeypatch: pytest.MonkeyPatch, compiled: tuple[str, ...], ready: bool, detail: str
    ) -> None:
        for name in ("_native", "_native_jpeg", "_native_cuda"):
            module = types.ModuleType(name) if name in compiled else None
            monkeypatch.setitem(sys.modules, f"sdrpn.{name}", module)
        ability = workflow._native_image_path()
        assert ability.ready == ready
        assert ability.detail.startswith(detail)

    @pytest.mark.parametrize(
        ("instructions", "ready", "detail"),
        [
            (None, False, "was not compiled: OpenVINO's own"),
            ("plain", False, "not for this processor"),
            ("avx2", True, "with avx2, for OpenVINO"),
        ],
    )
    def test_native_decode_steps(
        self, monkeypatch: pytest.MonkeyPatch, instructions: str | None, ready: bool, detail: str
    ) -> None:
        module = None if instructions is None else types.ModuleType("_native_steps")
        if module is not None:
            monkeypatch.setattr(module, "instructions", lambda: instructions, raising=False)
        monkeypatch.setitem(sys.modules, "sdrpn._native_steps", module)
        monkeypatch.setattr(workflow, "native_module", lambda name: module)
        ability = workflow._native_steps()
        assert ability.ready == ready
        assert ability.detail.startswith(detail)

    def test_export_says_what_is_missing_and_the_command(self, diagnosis_of: Setting) -> None:
        export = ability(diagnosis_of(PC, versions=BASE_VERSIONS), "export")
        assert export.detail.startswith("missing: onnxscript,")
        assert export.command is not None
        assert re.search(r"-m pip install .*\[export\]", export.command)

    def test_a_library_that_is_too_old_is_missing(self, diagnosis_of: Setting) -> None:
        diagnosis = diagnosis_of(PC, versions={**BASE_VERSIONS, "onnxruntime": "1.18.0"})
        assert ability(diagnosis, "ask, on the CPU").detail == "missing: onnxruntime"
        assert next(library for library in diagnosis.libraries if library.name == "onnxruntime").good is False

    def test_a_gpu_without_the_cuda_provider(self, diagnosis_of: Setting) -> None:
        gpu = ability(diagnosis_of(GPU_PC, versions=BASE_VERSIONS), "ask, on the GPU")
        assert not gpu.ready
        assert gpu.detail == "this ONNX Runtime has no CUDAExecutionProvider"
        assert gpu.command is not None
        # In this order: the two wheels own one folder.
        assert re.search(r"pip uninstall -y onnxruntime onnxruntime-gpu && .* pip install .*\[cuda\]", gpu.command)

    @pytest.mark.parametrize("fault", [None, "libcublasLt.so.13: cannot open shared object file"])
    def test_a_gpu_with_the_cuda_provider(
        self, diagnosis_of: Setting, monkeypatch: pytest.MonkeyPatch, fault: str | None
    ) -> None:
        """It is compiled in; whether the libraries of CUDA are there is another question."""
        monkeypatch.setattr(onnxruntime_info, "_cuda_fault", lambda: fault)
        diagnosis = diagnosis_of(
            GPU_PC, versions=BASE_VERSIONS, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        gpu = ability(diagnosis, "ask, on the GPU")
        assert gpu.ready is (fault is None)
        assert gpu.detail == (fault or f"ONNX Runtime {BASE_VERSIONS['onnxruntime']} with CUDA")
        assert (gpu.command is None) is (fault is None)

    def test_the_cuda_provider_without_a_gpu(self, diagnosis_of: Setting) -> None:
        diagnosis = diagnosis_of(
            PC, versions=BASE_VERSIONS, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]
        )
        assert ability(diagnosis, "ask, on the GPU").detail == "no NVIDIA GPU, or its driver is not installed"

    def test_clashing_onnxruntimes(self, diagnosis_of: Setting) -> None:
        diagnosis = diagnosis_of(GPU_PC, versions={**BASE_VERSIONS, "onnxruntime-gpu": "1.24.1"})
        assert re.search(r"both installed and overwrite each other; .* install onnxruntime-gpu$", diagnosis.notes[0])

    def test_an_onnxruntime_that_cannot_be_imported(
        self, diagnosis_of: Setting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        diagnosis_of(PC, versions=BASE_VERSIONS)
        # What is left after one of two clashing wheels was removed.
        monkeypatch.setitem(sys.modules, "onnxruntime", types.ModuleType("onnxruntime"))
        diagnosis = workflow.diagnose_machine()
        assert "installed but cannot be used" in diagnosis.notes[0]
        assert ability(diagnosis, "ask, on the CPU").detail == "ONNX Runtime has no CPU provider"


class TestOnJetson:
    def test_tensorrt_comes_with_jetpack(self, diagnosis_of: Setting) -> None:
        diagnosis = diagnosis_of(ORIN, versions=BASE_VERSIONS)
        tensorrt = ability(diagnosis, "TensorRT")
        assert (tensorrt.ready, tensorrt.command) == (False, None)
        assert "never from PyPI" in diagnosis.notes[0]
        assert "--system-site-packages" in diagnosis.notes[0]
        assert "does not see JetPack's Python packages" in diagnosis.notes[1]

    def test_an_environment_that_sees_jetpack(self, diagnosis_of: Setting) -> None:
        machine = dataclasses.replace(ORIN, system_site_packages=True)
        diagnosis = diagnosis_of(machine, versions={**BASE_VERSIONS, "tensorrt": "10.3.0"})
        assert ability(diagnosis, "TensorRT").ready
        assert len(diagnosis.notes) == 1

    def test_a_pypi_wheel_is_not_advised(self, diagnosis_of: Setting) -> None:
        gpu = ability(diagnosis_of(ORIN, versions=BASE_VERSIONS), "ask, on the GPU")
        assert gpu.command is None
        assert "built for this JetPack" in gpu.detail
