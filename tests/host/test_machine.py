"""Recognising hardware from what the system says about itself."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdrpn.host.machine import Cpu, Gpu, Jetson, read_cpu, read_cuda_driver, read_gpus, read_jetson, read_machine


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


class TestGpus:
    def test_two_gpus(self) -> None:
        gpus = read_gpus(lambda: "NVIDIA RTX A6000, 49140, 8.6, 560.35.03\nNVIDIA A2, 15356, 8.6, 560.35.03\n")
        assert gpus[0] == Gpu("NVIDIA RTX A6000", 49140 * 2**20, "8.6", "560.35.03")
        assert len(gpus) == 2

    def test_a_gpu_that_shares_the_systems_memory(self) -> None:
        assert read_gpus(lambda: "NVIDIA Thor, [N/A], 11.0, 580.00\n") == (Gpu("NVIDIA Thor", None, "11.0", "580.00"),)

    @pytest.mark.parametrize("text", ["", "No devices were found\n", "\n\n"])
    def test_no_gpu(self, text: str) -> None:
        assert read_gpus(lambda: text) == ()

    @pytest.mark.parametrize(
        "error",
        [
            FileNotFoundError("nvidia-smi"),
            subprocess.CalledProcessError(9, "nvidia-smi"),
            subprocess.TimeoutExpired("nvidia-smi", 20),
        ],
    )
    def test_no_driver(self, error: Exception) -> None:
        def fail() -> str:
            raise error

        assert read_gpus(fail) == ()


class Driver:
    """libcuda, as ctypes shows it."""

    def __init__(self, version: int, error: int = 0) -> None:
        self.version, self.error = version, error

    def cuDriverGetVersion(self, place: Any) -> int:  # noqa: N802
        place._obj.value = self.version
        return self.error


class TestCudaDriver:
    def test_its_version(self) -> None:
        assert read_cuda_driver(lambda name: Driver(13040)) == 13040

    def test_a_driver_that_fails(self) -> None:
        assert read_cuda_driver(lambda name: Driver(0, error=999)) is None

    @pytest.mark.parametrize("error", [OSError("libcuda.so.1: cannot open shared object file"), AttributeError()])
    def test_no_driver(self, error: Exception) -> None:
        def fail(name: str) -> Driver:
            raise error

        assert read_cuda_driver(fail) is None


class TestCpu:
    @pytest.mark.parametrize(
        ("model", "name"),
        [
            ("AMD EPYC", "AMD EPYC"),
            ("0x41 0xd42 0x0", "Arm Cortex-A78AE"),
            ("0x41 0xfff 0x0", "0x41 0xfff 0x0"),
            ("", ""),
        ],
    )
    def test_names_that_people_know(self, model: str, name: str) -> None:
        assert Cpu(model, ()).name == name

    def test_x86(self, tmp_path: Path) -> None:
        put(tmp_path, "proc/cpuinfo", "model name\t: A CPU\nflags\t\t: fpu avx2\n\nmodel name\t: B\nflags\t\t: sse\n")
        assert read_cpu(tmp_path) == Cpu("A CPU", ("avx2", "fpu"))

    def test_arm(self, tmp_path: Path) -> None:
        put(tmp_path, "proc/cpuinfo", "Features\t: fp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n")
        assert read_cpu(tmp_path) == Cpu("0x41 0xd42", ("asimddp", "fp"))

    def test_what_is_not_told(self, tmp_path: Path) -> None:
        assert read_cpu(tmp_path).model
        assert read_cpu(tmp_path).features == ()

    def test_the_digest_is_of_model_and_features(self) -> None:
        digests = {Cpu(model, features).digest for model in "ab" for features in ((), ("avx2",))}
        assert len(digests) == 4


class TestJetson:
    def test_orin(self, tmp_path: Path) -> None:
        put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
        put(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
        assert read_jetson(tmp_path) == Jetson("NVIDIA Jetson AGX Orin Developer Kit", "36.4.3", "6")

    def test_an_unknown_release(self, tmp_path: Path) -> None:
        put(tmp_path, "etc/nv_tegra_release", "# R99 (release), REVISION: 1.0\n")
        assert read_jetson(tmp_path) == Jetson("NVIDIA Jetson", "99.1.0", None)

    def test_in_a_container_without_the_release_file(self, tmp_path: Path) -> None:
        put(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
        assert read_jetson(tmp_path) == Jetson("NVIDIA Jetson Orin Nano", None, None)

    def test_other_boards(self, tmp_path: Path) -> None:
        assert read_jetson(tmp_path) is None
        put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
        assert read_jetson(tmp_path) is None


class TestMemory:
    MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\n"

    def test_a_whole_machine(self, tmp_path: Path) -> None:
        put(tmp_path, "proc/meminfo", self.MEMINFO)
        put(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
        machine = read_machine(tmp_path)
        assert (machine.memory_bytes, machine.memory_available_bytes) == (16_384_000_000, 9_216_000_000)

    def test_a_container_with_less(self, tmp_path: Path) -> None:
        put(tmp_path, "proc/meminfo", self.MEMINFO)
        put(tmp_path, "sys/fs/cgroup/memory.max", "4000000000\n")
        put(tmp_path, "sys/fs/cgroup/memory.current", "1500000000\n")
        machine = read_machine(tmp_path)
        assert (machine.memory_bytes, machine.memory_available_bytes) == (4_000_000_000, 2_500_000_000)

    def test_a_system_that_does_not_tell(self, tmp_path: Path) -> None:
        machine = read_machine(tmp_path)
        assert (machine.memory_bytes, machine.memory_available_bytes) == (None, None)
