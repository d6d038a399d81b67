"""What is said of this machine, whichever it is, and of one with a GPU."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest

from sdrpn.errors import MissingDependency, RunFailed
from sdrpn.host.machine import Gpu
from sdrpn.runtime.backends import device_memory
from sdrpn.runtime.backends.cuda import Cuda, load_cuda
from sdrpn.runtime.engines import platform as platform_module
from sdrpn.runtime.engines.platform import read_platform

pytest.importorskip("cuda.bindings.runtime")

from tests.runtime.fake_cuda import FakeCudart

SHOWN = Gpu("NVIDIA L4", 24 << 30, "8.9", "550.54.14")


def test_it_never_fails() -> None:
    here = read_platform()
    assert (here.system, here.machine) == (platform.system(), platform.machine())
    assert set(here.libraries) == {"tensorrt", "tensorrt-rtx"}
    assert here.gpu is not None or here.cuda_fault is not None or here.cuda_driver is not None


def test_a_gpu_as_cuda_and_nvidia_smi_describe_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_module, "load_cuda", lambda purpose, device: Cuda(FakeCudart(), device))
    monkeypatch.setattr(platform_module, "read_gpus", lambda: (SHOWN,))
    here = read_platform()
    assert here.gpu == platform_module.PlatformGpu("Fake GPU", "SM89", 20_000_000_000, "550.54.14")
    assert (here.cuda_driver, here.cuda_runtime, here.cuda_fault) == (13040, 13000, None)


def test_a_gpu_that_only_nvidia_smi_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(purpose: str, device: int) -> Cuda:
        raise MissingDependency("no cuda-python")

    monkeypatch.setattr(platform_module, "load_cuda", missing)
    monkeypatch.setattr(platform_module, "read_gpus", lambda: (SHOWN,))
    here = read_platform()
    assert here.gpu == platform_module.PlatformGpu("NVIDIA L4", "SM89", 24 << 30, "550.54.14")
    assert here.cuda_fault == "no cuda-python"


def test_a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    api = FakeCudart()
    api.failures["cudaGetDeviceCount"] = FakeCudart.cudaError_t.cudaErrorInsufficientDriver
    with pytest.raises(RunFailed, match=r"cudaGetDeviceCount failed with cudaErrorInsufficientDriver \(CUDA driver"):
        Cuda(api).device_count()


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdrpn.runtime.backends import cuda

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(cuda, "import_module", absent)
    with pytest.raises(MissingDependency, match=r"needs cuda-python, which cannot be imported \(No module .*; install"):
        load_cuda("backend tensorrt")


class TestFreeMemory:
    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeCudart], int | None]:
        def read(api: FakeCudart) -> int | None:
            monkeypatch.setattr(platform_module, "load_cuda", lambda purpose, device: Cuda(api, device))
            monkeypatch.setattr(device_memory, "read_available_memory", lambda: 30 << 30)
            here = read_platform()
            assert here.gpu is not None
            return here.gpu.memory_free_bytes

        return read

    def test_where_the_system_keeps_files_in_the_same_memory(self, read: Callable[[FakeCudart], int | None]) -> None:
        """CUDA does not count those as free, although they would make room."""
        api = FakeCudart(integrated=True, memory=32 << 30, occupied=28 << 30)
        assert read(api) == 30 << 30

    def test_where_cuda_knows_of_more(self, read: Callable[[FakeCudart], int | None]) -> None:
        assert read(FakeCudart(integrated=True, memory=64 << 30, occupied=0)) == 64 << 30

    def test_a_gpu_with_its_own(self, read: Callable[[FakeCudart], int | None]) -> None:
        assert read(FakeCudart(memory=8 << 30, occupied=1 << 30)) == 7 << 30

    @pytest.mark.parametrize(("integrated", "expected"), [(True, 30 << 30), (False, None)])
    def test_where_cuda_cannot_tell(
        self, read: Callable[[FakeCudart], int | None], integrated: bool, expected: int | None
    ) -> None:
        api = FakeCudart(integrated=integrated)
        api.failures["cudaMemGetInfo"] = FakeCudart.cudaError_t.cudaErrorNotSupported
        assert read(api) == expected
