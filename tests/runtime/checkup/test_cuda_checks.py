"""The checks of CUDA on fakes: all pass on a good device, and each fault fails the step that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.runtime")

from sdrpn.errors import MissingDependency
from sdrpn.reports.device_report import CheckResult
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.checkup.cuda_checks import CudaChecks
from sdrpn.runtime.checkup.groups import STEP_COUNTS
from sdrpn.runtime.checkup.steps import run_steps
from tests.runtime.fake_cuda import OK, FakeCudart

COPY_BYTES = 1 << 16


def checked(fake: FakeCudart, *, gpu_expected: bool = True) -> dict[str, CheckResult]:
    checks = CudaChecks(lambda: Cuda(fake), gpu_expected=gpu_expected, copy_bytes=COPY_BYTES)
    return {result.name: result for result in run_steps("CUDA", checks.steps())}


def failed(results: dict[str, CheckResult]) -> list[str]:
    return [name for name, result in results.items() if result.state == "failed"]


class LimitedCudart(FakeCudart):
    """Has a little memory, which it counts."""

    leaks = 0

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if size > 1 << 30:
            return (self.cudaError_t.cudaErrorMemoryAllocation,)
        return super().cudaMalloc(size)

    def cudaMemGetInfo(self) -> Any:  # noqa: N802
        used = sum(block.size for block in self.live.values() if block.kind == "device")
        self.leaks, lost = self.leaks * 2, self.leaks
        return OK, (8 << 30) - used - lost, 8 << 30


@pytest.mark.parametrize("integrated", [False, True])
def test_a_good_device_passes_every_step(integrated: bool) -> None:
    fake = LimitedCudart(integrated=integrated)
    results = checked(fake)
    assert {name: result.detail for name, result in results.items() if result.state != "passed"} == {}
    assert len(results) == STEP_COUNTS["CUDA"]
    assert ("shares the system's memory" in results["driver and GPU"].detail) is integrated
    assert set(results["copies"].figures) == {"host_to_device_gb_s", "device_to_host_gb_s", "within_device_gb_s"}
    assert fake.violations == []


class MisalignedCudart(LimitedCudart):
    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        error, address = super().cudaMalloc(size + 64)
        self.live[address + 64] = self.live.pop(address)
        return error, address + 64


class DirtyCudart(LimitedCudart):
    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> Any:  # noqa: N802
        return (OK,)


class NarrowCudart(LimitedCudart):
    """Rows arrive without their last element."""

    def cudaMemcpy2DAsync(self, target: int, to: int, source: int, pitch: int, width: int, *rest: Any) -> Any:  # noqa: N802
        return super().cudaMemcpy2DAsync(target, to, source, pitch, max(0, width - 2), *rest)


class OldDriverCudart(LimitedCudart):
    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return OK, 12080


class GenerousCudart(LimitedCudart):
    """Grants whatever is asked for."""

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        return super().cudaMalloc(min(size, 1 << 20))


class ImpatientCudart(LimitedCudart):
    """Captured steps run once, when they are captured, and never again."""

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:  # noqa: N802
        return (OK,)


@pytest.mark.parametrize(
    ("kind", "step", "detail"),
    [
        (MisalignedCudart, "memory", "do not begin at a multiple of 256"),
        (DirtyCudart, "memory", "does not read as zeros"),
        (NarrowCudart, "copies", "rows in a cache"),
        (OldDriverCudart, "driver and GPU", "install a newer driver"),
        (GenerousCudart, "memory runs out", "were allocated"),
        (ImpatientCudart, "captured graph", "what a captured step copied"),
    ],
)
def test_a_fault_fails_its_step(kind: Callable[[], FakeCudart], step: str, detail: str) -> None:
    results = checked(kind())
    assert step in failed(results)
    assert detail in results[step].detail


def test_memory_that_does_not_come_back_is_noticed() -> None:
    fake = LimitedCudart()
    fake.leaks = 100 << 20
    results = checked(fake)
    assert failed(results) == ["memory goes back"]
    assert "were not freed" in results["memory goes back"].detail


def missing() -> Cuda:
    raise MissingDependency("the check needs cuda-python")


@pytest.mark.parametrize("open_cuda", [missing, lambda: Cuda(FakeCudart(devices=0))])
def test_without_a_gpu_everything_is_skipped(open_cuda: Callable[[], Cuda]) -> None:
    checks = CudaChecks(open_cuda, gpu_expected=False)
    assert {result.state for result in run_steps("CUDA", checks.steps())} == {"skipped"}


@pytest.mark.parametrize("open_cuda", [missing, lambda: Cuda(FakeCudart(devices=0))])
def test_a_gpu_that_cannot_be_used_is_a_failure(open_cuda: Callable[[], Cuda]) -> None:
    checks = CudaChecks(open_cuda, gpu_expected=True)
    assert {result.state for result in run_steps("CUDA", checks.steps())} == {"failed"}


def test_versions_are_shown_as_people_write_them() -> None:
    detail = checked(LimitedCudart())["driver and GPU"].detail
    assert "Fake GPU, SM89" in detail
    assert "driver CUDA 13.4, library 13.0" in detail
