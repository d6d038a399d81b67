"""Calls of CUDA and TensorRT that fail or are refused: named, and what can go on goes on."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime as real

from sdrpn.errors import BadInput, RunFailed
from sdrpn.runtime import Session
from sdrpn.runtime.backends.cuda import CudaFault
from sdrpn.runtime.backends.tensorrt_library import Library
from tests.limits import ended_soon
from tests.runtime.asking import ask
from tests.runtime.fake_tensorrt import Severity
from tests.runtime.gpu import FakeGpu, fake_gpu

CUDA_CALLS = {
    "cudaGetDeviceCount": "open",
    "cudaGetDeviceProperties": "open",
    "cudaStreamCreateWithFlags": "open",
    "cudaMalloc": "open",
    "cudaMemsetAsync": "open",
    "cudaHostAlloc": "ask",
    "cudaMemcpyAsync": "ask",
    "cudaMemcpy2DAsync": "ask",
    "cudaStreamSynchronize": "ask",
    "cudaGraphLaunch": "ask",
}


@pytest.mark.parametrize("call", list(CUDA_CALLS))
def test_a_call_of_cuda_that_fails_is_named(tiny_bundle: Path, tmp_path: Path, call: str) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, variant="primitive-fp32")
    named = rf"{call} failed with cudaErrorUnknown \(unknown error\); `sdrpn doctor` shows the driver and the GPU"

    def fail() -> None:
        gpu.cuda.failures[call] = real.cudaError_t.cudaErrorUnknown

    if CUDA_CALLS[call] == "open":
        fail()
        with pytest.raises(RunFailed, match=named):
            gpu.session()
        return
    with gpu.session() as session:
        fail()
        with pytest.raises(RunFailed, match=named):
            ask(session)
    gpu.cuda.failures.clear()


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaMemsetAsync", "cudaStreamSynchronize"])
def test_a_fault_of_the_gpu_ends_the_session_and_nothing_else(tiny_bundle: Path, tmp_path: Path, call: str) -> None:
    """Every later call fails as well, and says so; closing what cannot be closed is not a second error."""
    gpu = fake_gpu(tiny_bundle, tmp_path)
    named = rf"{call} failed with cudaErrorIllegalAddress .*; this process cannot use the GPU any more: close the sess"
    with gpu.session() as session:
        ask(session)
        gpu.cuda.failures[call] = real.cudaError_t.cudaErrorIllegalAddress
        session.forget_image()
        with pytest.raises(CudaFault, match=named):
            ask(session)
        with pytest.raises(CudaFault, match="cannot use the GPU any more"):
            ask(session)
    del session
    gc.collect()


def test_memory_that_does_not_suffice(tiny_bundle: Path, tmp_path: Path) -> None:
    """It is refused when it is asked for, and what had been taken goes back."""
    gpu = fake_gpu(tiny_bundle, tmp_path, memory=4_000_000_000 + (3 << 20))
    with gpu.session() as session:
        ask(session)
    del session
    gc.collect()
    assert gpu.cuda.live == {}
    gpu.cuda.memory -= 2 << 20
    with pytest.raises(RunFailed, match=r"cudaMalloc failed with cudaErrorMemoryAllocation \(out of memory\); free"):
        gpu.session()
    gc.collect()
    assert (gpu.cuda.live, gpu.cuda.violations) == ({}, [])


@pytest.mark.parametrize("first_closed", [0, 1])
def test_two_sessions_of_one_library(any_gpu: FakeGpu, first_closed: int) -> None:
    """It keeps the first logger that it was given, which must not go with the first session."""
    sessions: list[Session | None] = [any_gpu.session(), any_gpu.session()]
    expected = [ask(session).token_ids for session in sessions if session is not None]
    for index in (first_closed, 1 - first_closed):
        closing, sessions[index] = sessions[index], None
        assert closing is not None
        closing.close()
        del closing
        gc.collect()
    any_gpu.trt.refusals.add("deserialize_cuda_engine")
    with pytest.raises(RunFailed, match="deserialize_cuda_engine is not wanted here"):
        any_gpu.session()
    assert expected[0] == expected[1]
    assert any_gpu.cuda.violations == []


def test_complaints_are_kept_thread_by_thread(gpu: FakeGpu) -> None:
    log = Library("tensorrt", gpu.trt).log
    log.log(Severity.ERROR, "mine")
    other = threading.Thread(target=lambda: log.log(Severity.ERROR, "of another session"))
    other.start()
    ended_soon(other)
    assert log.last() == "mine"
    assert Library("tensorrt", gpu.trt).log is log


def test_memory_that_runs_out_says_what_helps(gpu: FakeGpu) -> None:
    gpu.cuda.failures["cudaMalloc"] = real.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(RunFailed, match=r"cudaMalloc failed with cudaErrorMemoryAllocation \(out of memory\); free"):
        gpu.session()


@pytest.mark.parametrize(
    ("refusal", "call"),
    [
        ("deserialize_cuda_engine", r"tensorrt refused Runtime.deserialize_cuda_engine\(\w+.engine\)"),
        ("create_execution_context", "vision.engine: tensorrt refused ICudaEngine.create_execution_context"),
        ("set_optimization_profile_async", r"IExecutionContext.set_optimization_profile_async\(0\)"),
        ("set_input_shape", r"IExecutionContext.set_input_shape\(pixel_values, \(1, 3, 56, 56\)\)"),
        ("set_tensor_address", r"IExecutionContext.set_tensor_address\(pixel_values\)"),
        ("execute_async_v3", "IExecutionContext.execute_async_v3"),
    ],
)
def test_a_call_of_tensorrt_that_is_refused_is_named(gpu: FakeGpu, refusal: str, call: str) -> None:
    gpu.trt.refusals.add(refusal)
    with pytest.raises(RunFailed, match=rf"{call}: {refusal} is not wanted here"), gpu.session() as session:
        ask(session)


def test_no_gpu(gpu: FakeGpu) -> None:
    gpu.cuda.devices = 0
    with pytest.raises(BadInput, match="CUDA shows no GPU on this machine; `sdrpn doctor` shows what is missing, or"):
        gpu.session()
