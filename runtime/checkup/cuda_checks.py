"""Check what engines need from CUDA: memory, copies, stream order, captured graphs. Knows no TensorRT and no bundle."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from sdrpn.errors import MissingDependency, RunFailed
from sdrpn.host.machine import read_machine
from sdrpn.host.sizes import text_from_bytes
from sdrpn.reports.device_report import Figure
from sdrpn.runtime.backends.cuda import Cuda
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Device
from sdrpn.runtime.backends.step_graph import StepGraph
from sdrpn.runtime.checkup.steps import CheckFailed, Finding, Skip, Step

__all__ = ["CudaChecks"]

# The alignment that TensorRT requires of every address.
_ALIGNMENT = 256
_LAUNCHES = 100
_WIDTH = 160  # rows of the shipped model: 640 bytes, not a multiple of 256
_NOT_MEMORY_BYTES = 1 << 46  # more than any device has
_LEAK_BYTES = 64 << 20


class CudaChecks:
    """The checks of one device, through the runtime's own CUDA layer."""

    def __init__(self, open_cuda: Callable[[], Cuda], *, gpu_expected: bool, copy_bytes: int = 64 << 20) -> None:
        """Args:
        gpu_expected: the machine shows an NVIDIA GPU, so an unusable driver is a failure
        copy_bytes: the size of a copy
        """
        self._open_cuda, self._gpu_expected, self._copy_bytes = open_cuda, gpu_expected, copy_bytes

    def steps(self) -> list[Step]:
        """The steps, each after those that it depends on."""
        return [
            Step("driver and GPU", self.driver),
            Step("memory", self.memory),
            Step("copies", self.copies),
            Step("order on the stream", self.stream_order),
            Step("blocks used again", self.blocks_used_again),
            Step("captured graph", self.capture),
            Step("refused capture", self.refused_capture),
            Step("memory runs out", self.out_of_memory),
            Step("memory goes back", self.memory_back),
        ]

    @cached_property
    def cuda(self) -> Cuda:
        """CUDA on the device. Raises Skip where this machine has no NVIDIA GPU."""
        try:
            cuda = self._open_cuda()
            count = cuda.device_count()
        except (MissingDependency, RunFailed):
            if self._gpu_expected:
                raise
            raise Skip("this machine shows no NVIDIA GPU") from None
        if count == 0:
            raise (
                CheckFailed("CUDA shows no GPU, though the machine has one")
                if self._gpu_expected
                else Skip("this machine shows no NVIDIA GPU")
            )
        return cuda

    @cached_property
    def device(self) -> Device:
        """The stream and its memory. Raises Skip where this machine has no NVIDIA GPU."""
        return Device(self.cuda)

    def driver(self) -> Finding:
        """Versions, and the kind of GPU."""
        facts, (driver, runtime) = self.device.facts, self.cuda.versions()
        if driver < runtime // 1000 * 1000:
            raise CheckFailed(
                f"the driver has CUDA {_cuda_version(driver)}, older than the library's {_cuda_version(runtime)}; "
                "install a newer driver"
            )
        kind = "shares the system's memory" if facts.integrated else "has its own memory"
        return Finding(
            f"{facts.name}, {facts.capability}, {kind}; driver CUDA {_cuda_version(driver)}, library "
            f"{_cuda_version(runtime)}",
            {"name": facts.name, "capability": facts.capability, "driver": driver, "runtime": runtime},
        )

    def memory(self) -> Finding:
        """Addresses are aligned, and cleared memory is zero."""
        sizes = (1, 255, 640, 4097, 1 << 20)
        buffers = [DeviceBuffer.zeros(self.device, (size,), "uint8") for size in sizes]
        wrong = [size for size, buffer in zip(sizes, buffers, strict=True) if buffer.pointer % _ALIGNMENT]
        if wrong:
            raise CheckFailed(f"blocks of {wrong} bytes do not begin at a multiple of {_ALIGNMENT}")
        if any(buffer.read().any() for buffer in buffers):
            raise CheckFailed("cleared memory does not read as zeros")
        free, available = self.cuda.free_memory(), read_machine().memory_available_bytes
        figures = {"cuda_free_bytes": free or 0, "system_available_bytes": available or 0}
        return Finding(f"{_size(free)} free on the GPU, {_size(available)} available to the system", figures)

    def copies(self) -> Finding:
        """Arrays are copied without change, whole and by rows; and how fast."""
        rng = np.random.default_rng(0)
        rows = rng.random((1, 7, _WIDTH), np.float32)
        buffer = DeviceBuffer.zeros(self.device, rows.shape, "float32")
        buffer.write(rows)
        _require_equal(buffer.read(), rows, "a buffer")
        _require_equal(buffer.rows(2, 5).read(), rows[:, 2:5], "rows of a buffer")
        blocks = rng.random((1, 5, 9, 32), np.float32).astype(np.float16)
        source = DeviceBuffer.zeros(self.device, blocks.shape, "float16")
        cache = DeviceBuffer.zeros(self.device, (1, 5, 64, 32), "float16")
        source.write(blocks)
        cache.copy_rows(source, 9, 20)
        _require_equal(cache.read()[:, :, 20:29], blocks, "rows in a cache")
        _require_equal(cache.with_rows(128, 40).read()[:, :, :40], cache.read()[:, :, :40], "a cache that grew")
        speeds = self._speeds()
        shown = ", ".join(f"{name.removesuffix('_gb_s').replace('_', ' ')} {gb_s:.1f}" for name, gb_s in speeds.items())
        return Finding(f"equal; GB/s: {shown}", speeds)

    def _speeds(self) -> dict[str, Figure]:
        count = self._copy_bytes
        source, target = (DeviceBuffer.zeros(self.device, (count,), "uint8") for _ in range(2))
        array = np.ones(count, np.uint8)

        def within() -> None:
            self.cuda.copy(target.pointer, source.pointer, count, self.device.stream.handle)
            self.device.stream.mark()

        def down() -> None:
            source.changed()
            source.read()

        jobs: dict[str, Callable[[], object]] = {
            "host_to_device_gb_s": lambda: source.write(array),
            "device_to_host_gb_s": down,
            "within_device_gb_s": within,
        }
        return {name: count / _best_s(job, self.device) / 1e9 for name, job in jobs.items()}

    def stream_order(self) -> Finding:
        """Pinned memory is not overwritten during a copy from it."""
        size = self._copy_bytes // 4
        buffer, copy = (DeviceBuffer.zeros(self.device, (size,), "float32") for _ in range(2))
        for value in range(4):
            self._keep_busy()
            buffer.write(np.full(size, value, np.float32))
            self._copy(copy, buffer)
            buffer.write(np.full(size, -1, np.float32))
            if not (copy.read() == value).all():
                raise CheckFailed("a copy has values that were written after it was enqueued")
        return Finding("4 of 4 copies have the values that were written before them")

    def blocks_used_again(self) -> Finding:
        """A released block is reused only after its last use."""
        size = self._copy_bytes // 4
        for value in range(4):
            buffer, copy = (DeviceBuffer.zeros(self.device, (size,), "float32") for _ in range(2))
            buffer.write(np.full(size, value, np.float32))
            self._keep_busy()
            self._copy(copy, buffer)
            del buffer
            DeviceBuffer.zeros(self.device, (size,), "float32").write(np.full(size, -1, np.float32))
            if not (copy.read() == value).all():
                raise CheckFailed("a block was overwritten before its last use was done")
        return Finding("4 of 4 blocks were not overwritten until their last use was done")

    def capture(self) -> Finding:
        """A captured step gives the same results at every launch as when enqueued."""
        source, target = (DeviceBuffer.zeros(self.device, (1, 1, _WIDTH), "float32") for _ in range(2))

        def step() -> None:
            self._copy(target, source)

        source.defer()
        graph = StepGraph(self.device, (step,), (source,), (target,))
        rng = np.random.default_rng(0)
        start = time.perf_counter()
        for _ in range(_LAUNCHES):
            row = rng.random((1, 1, _WIDTH), np.float32)
            source.write(row)
            graph()
            _require_equal(target.read(), row, "what a captured step copied")
        step_us = (time.perf_counter() - start) / _LAUNCHES * 1e6
        return Finding(f"{_LAUNCHES} launches, each with its own values", {"launch_and_read_us": step_us})

    def refused_capture(self) -> Finding:
        """The stream is usable after a call that a capture forbids."""

        def forbidden() -> None:
            self.cuda.free(self.cuda.allocate(1 << 20))

        graph = StepGraph(self.device, (forbidden,), (), ())
        graph()
        try:
            graph()
            found = "the step runs without a graph"
        except RunFailed as error:
            found = f"refused: {error}"
        self._require_usable()
        return Finding(f"{found}; the stream can be used afterwards")

    def out_of_memory(self) -> Finding:
        """An allocation that is too large is refused without side effects."""
        try:
            self.device.memory.take(_NOT_MEMORY_BYTES)
        except RunFailed:
            self._require_usable()
            return Finding("refused, and memory can be used afterwards")
        raise CheckFailed(f"{text_from_bytes(_NOT_MEMORY_BYTES)} were allocated")

    def memory_back(self) -> Finding:
        """Released memory is free again."""
        before = self._settled_free_bytes()
        for _ in range(8):
            DeviceBuffer.zeros(self.device, (self._copy_bytes,), "uint8")
        after = self._settled_free_bytes()
        if before is None or after is None:
            raise Skip("this GPU does not report how much memory is free")
        lost = before - after
        if lost > _LEAK_BYTES:
            raise CheckFailed(f"{text_from_bytes(lost)} were not freed")
        return Finding("all of it", {"lost_bytes": lost})

    def _settled_free_bytes(self) -> int | None:
        gc.collect()
        self.device.trim()
        return self.cuda.free_memory()

    def _copy(self, target: DeviceBuffer, source: DeviceBuffer) -> None:
        target.changed()
        self.cuda.copy(target.pointer, source.pointer, source.size_bytes, self.device.stream.handle)
        self.device.stream.mark()

    def _keep_busy(self) -> None:
        """Enqueue enough copies that later work does not run at once."""
        source, target = (DeviceBuffer.zeros(self.device, (self._copy_bytes,), "uint8") for _ in range(2))
        for _ in range(16):
            self._copy(source, target)

    def _require_usable(self) -> None:
        buffer = DeviceBuffer.zeros(self.device, (_WIDTH,), "float32")
        buffer.write(np.ones(_WIDTH, np.float32))
        if not (buffer.read() == 1).all():
            raise CheckFailed("memory does not have the values that are written afterwards")


def _best_s(job: Callable[[], object], device: Device) -> float:
    seconds = []
    for _ in range(4):
        device.stream.synchronize()
        start = time.perf_counter()
        job()
        device.stream.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _require_equal(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], what: str) -> None:
    different = int((found != expected).sum())
    if different:
        raise CheckFailed(f"{what}: {different} of {expected.size} values differ from what was sent")


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _size(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else text_from_bytes(size_bytes)
