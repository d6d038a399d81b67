"""Memory of the device and pinned memory: given back, used again, never while something may still use it."""

from __future__ import annotations

import gc
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime as real

from sdrpn.runtime import Session
from sdrpn.runtime.backends import device_memory
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.device_memory import Block, Pool
from sdrpn.runtime.backends.step_graph import StepGraph
from tests.runtime.asking import OTHER, ask, conversation
from tests.runtime.gpu import FakeGpu, fake_gpu


def test_everything_is_given_back(any_gpu: FakeGpu) -> None:
    with any_gpu.session() as session:
        conversation(session)
        most = sum(block.size for block in any_gpu.cuda.live.values())
    assert sum(block.size for block in any_gpu.cuda.live.values()) < most / 10  # the logits, and a staging buffer
    del session
    gc.collect()
    assert any_gpu.cuda.violations == []
    assert any_gpu.cuda.live == {}
    assert any_gpu.cuda.graphs == {}
    assert any_gpu.cuda.names()[-1] == "cudaStreamDestroy"


def test_the_fake_would_notice_memory_that_is_freed_too_early(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    buffer = backend.allocate((64,), "float32")
    buffer._device.cuda.free(buffer.pointer)
    assert gpu.cuda.violations == ["memory is freed while clear may still use it"]


def test_a_second_question_allocates_nothing_new(gpu: FakeGpu, session: Session) -> None:
    conversation(session)
    before = gpu.cuda.names().count("cudaMalloc"), gpu.cuda.names().count("cudaHostAlloc")
    conversation(session)
    assert (gpu.cuda.names().count("cudaMalloc"), gpu.cuda.names().count("cudaHostAlloc")) == before


def test_what_is_kept_for_later_goes_back_when_memory_runs_out(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    kept = backend.allocate((4,), "float32")
    del kept
    keeper = backend.allocate((1 << 16,), "float32")
    large = backend.allocate((1 << 12,), "float32")
    del large
    gpu.cuda.failures["cudaMalloc"] = real.cudaError_t.cudaErrorMemoryAllocation
    backend.allocate((1 << 20,), "float32")
    assert "cudaFree" in gpu.cuda.names()
    assert keeper.read().sum() == 0
    assert gpu.cuda.violations == []


def test_garbage_that_is_collected_during_a_capture_does_not_spoil_it(gpu: FakeGpu) -> None:
    device = gpu.backend().device
    garbage: list[DeviceBuffer] = []
    collecting: list[bool] = []

    def step() -> None:
        garbage.clear()
        collecting.append(gc.isenabled())

    graph = StepGraph(device, (step,), (), ())
    graph()
    garbage.append(DeviceBuffer.zeros(device, (1 << 27,), "float32"))
    graph()
    calls = gpu.cuda.names()
    begin = calls.index("cudaStreamBeginCapture")
    assert calls[begin + 1] == "cudaStreamEndCapture"
    assert collecting == [True, False]  # nor does what others would free
    assert gc.isenabled()
    device.memory.take(1)
    assert "cudaFree" in gpu.cuda.names()


def taken_while_garbage_goes(pool: Pool, garbage: list[Block], moment: int) -> tuple[list[Block], int]:
    """Two blocks, the garbage collected before the line of that number that a pool runs; and how many lines ran."""
    lines = 0

    def collect(frame: Any, event: str, argument: object) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != device_memory.__file__:
            return None
        lines += event == "line"
        if event == "line" and lines == moment:
            garbage.clear()
        return collect

    sys.settrace(collect)
    try:
        return [pool.take(1 << 12), pool.take(1 << 15)], lines
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("kind", ["memory", "pinned"])
def test_blocks_that_go_at_any_moment(gpu: FakeGpu, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The garbage collector may run between any two lines of a pool."""
    monkeypatch.setattr(device_memory, "_KEPT_BYTES", 190 << 10)  # what goes first stays, with the rest it is too much
    device = gpu.backend().device
    pool: Pool = getattr(device, kind)
    garbage: list[Block] = []
    for moment in itertools.count():
        garbage += [pool.take(1 << 16), pool.take(1 << 12), pool.take(1 << 17), pool.take(1 << 12)]
        del garbage[-2:]
        device.stream.synchronize()
        taken, lines = taken_while_garbage_goes(pool, garbage, moment)
        if lines < moment:
            break
        assert len({block.pointer for block in taken}) == 2
        assert all(block.pointer in gpu.cuda.live for block in taken)
        del taken
    assert moment > 20
    assert gpu.cuda.violations == []


def test_pinned_memory_is_taken_where_nobody_waits_for_it(gpu: FakeGpu) -> None:
    device = gpu.backend().device
    idle, busy = device.pinned.take(2048), device.pinned.take(512)
    place = idle.pointer
    del idle
    device.stream.synchronize()
    device.stream.mark()
    del busy  # smaller, but what was enqueued last may read it
    before = len(gpu.cuda.calls)
    assert device.pinned.take(512).pointer == place
    device.pinned.take(512)
    assert "cudaStreamSynchronize" not in gpu.cuda.names()[before:]


def test_an_integrated_gpu_is_not_waited_for_between_graphs(tiny_bundle: Path, tmp_path: Path) -> None:
    """Indices of the next graph are written while the last one runs: as many waits as on a GPU with its own memory."""
    waits = []
    for integrated in (False, True):
        gpu = fake_gpu(tiny_bundle, tmp_path / str(integrated), integrated=integrated)
        with gpu.session() as session:
            ask(session)
            before = len(gpu.cuda.names())
            ask(session, OTHER)
            waits.append(gpu.cuda.names()[before:].count("cudaStreamSynchronize"))
        assert gpu.cuda.violations == []
    assert waits[1] <= waits[0]


def test_an_integrated_gpu_copies_nothing_to_and_fro(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, integrated=True)
    with gpu.session() as session:
        ask(session)
    assert "cudaMemcpyAsync" not in gpu.cuda.names()
    assert "cudaHostGetDevicePointer" in gpu.cuda.names()


def test_what_was_read_stays_when_its_buffer_goes(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    buffer = backend.allocate((8,), "float32")
    buffer.write(np.arange(8, dtype=np.float32))
    array = buffer.read()
    del buffer
    for _ in range(4):
        other = backend.allocate((8,), "float32")
        other.write(np.full(8, 9, np.float32))
        other.read()
    np.testing.assert_array_equal(array, np.arange(8))
