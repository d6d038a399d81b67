"""A decode step as one CUDA graph, on a CUDA that is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime as real

from sdrpn.errors import RunFailed
from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.step_graph import StepGraph
from tests.runtime.asking import NEW_TOKENS, OTHER, ask, buffers_for, conversation, require_same
from tests.runtime.gpu import FakeGpu, fake_gpu


def test_one_is_captured_after_a_first_step(gpu: FakeGpu, session: Session) -> None:
    ask(session, max_new_tokens=NEW_TOKENS)  # one token comes from the prefill
    calls = gpu.cuda.names()
    assert calls.count("cudaGraphInstantiate") == calls.count("cudaStreamBeginCapture") == 1
    assert calls.count("cudaGraphLaunch") == NEW_TOKENS - 2
    decoding = [run for run in gpu.trt.executions if run.graph != "vision" and run.shapes["row_index"] == (1, 1)]
    assert [step.graph for step in decoding] == ["trunk", "tail"] * 2  # enqueued, captured, and never again


def test_it_holds_host_to_device_engines_and_device_to_host(gpu: FakeGpu, session: Session) -> None:
    ask(session)
    (graph,) = gpu.cuda.graphs.values()
    assert [node.name for node in graph] == ["copy"] * 5 + ["trunk", "tail", "copy"]
    ask(session, OTHER)
    assert len(gpu.cuda.graphs) == 1  # the next answer launches the same


def test_a_step_is_one_launch_and_one_wait(gpu: FakeGpu, session: Session) -> None:
    ask(session)
    (slot,) = session._decoder.slots.all
    before = len(gpu.cuda.calls)
    session._decoder.step_one(slot, np.zeros((1, 64), np.float32), slot.valid["trunk"])
    assert gpu.cuda.names()[before:] == ["cudaGraphLaunch", "cudaStreamSynchronize"]


def test_a_batch_size_has_its_own(gpu: FakeGpu) -> None:
    backend = gpu.backend()
    runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["tail"], gpu.engine("tail"))
    chains = {}
    for batch in (1, 2):
        feeds, results = buffers_for(backend, runner, batch)
        chains[batch] = backend.chain([runner.bind(feeds, results)], [feeds["tap"]], [results["logits"]])
    for _ in range(3):
        for chain in chains.values():
            chain()
    assert gpu.cuda.names().count("cudaGraphInstantiate") == 2
    shapes = [run.shapes["tap"][0] for run in gpu.trt.executions]
    assert shapes == [1, 2, 1, 2]
    assert len({run.context for run in gpu.trt.executions}) == 2


def test_tensorrt_rtx_captures_by_itself(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
    with gpu.session() as session:
        ask(session)
    assert "cudaStreamBeginCapture" not in gpu.cuda.names()
    decoding = [run for run in gpu.trt.executions if run.shapes.get("row_index") == (1, 1)]
    assert decoding
    assert all(step.own_graph for step in decoding)
    assert not [run for run in gpu.trt.executions if run.own_graph and run not in decoding]


@pytest.mark.parametrize("reason", ["a call of TensorRT", "the end of the capture", "the graph"])
def test_where_a_capture_is_refused_every_step_is_enqueued(gpu: FakeGpu, session: Session, reason: str) -> None:
    with Session.open(gpu.bundle.path, backend="onnxruntime", variant="fused-fp32", threads=1) as plain:
        expected = conversation(plain)
    calls = {"the end of the capture": "cudaStreamEndCapture", "the graph": "cudaGraphInstantiate"}
    gpu.trt.capturable = reason not in ("a call of TensorRT",)
    if reason in calls:
        gpu.cuda.failures[calls[reason]] = real.cudaError_t.cudaErrorStreamCaptureInvalidated
    require_same(conversation(session), expected)
    assert session.backend_note is not None
    assert session.backend_note.startswith("decode steps are enqueued part by part, not as one CUDA graph: ")
    assert gpu.cuda.names().count("cudaStreamBeginCapture") == 1  # it is not tried at every step
    assert gpu.cuda.capture is None
    assert gpu.cuda.violations == []


def test_a_step_that_fails_by_itself_still_fails(gpu: FakeGpu, session: Session) -> None:
    ask(session, max_new_tokens=2)  # a first step
    gpu.trt.refusals.add("execute_async_v3")
    (slot,) = session._decoder.slots.all
    with pytest.raises(RunFailed, match=r"trunk.engine: tensorrt refused IExecutionContext.execute_async_v3: "):
        session._decoder.step_one(slot, np.zeros((1, 64), np.float32), slot.valid["trunk"])
    assert gpu.cuda.capture is None  # the stream can be used again
    gpu.trt.refusals.clear()
    ask(session)


def test_working_memory_that_grew_since_the_first_step(gpu: FakeGpu) -> None:
    """Where it lies cannot be changed inside a capture."""
    backend = gpu.backend()
    runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["tail"], gpu.engine("tail"))
    feeds, results = buffers_for(backend, runner)
    chain = backend.chain([runner.bind(feeds, results)], [feeds["tap"]], [results["logits"]])
    chain()
    backend.memory.require(1 << 22)
    for _ in range(3):  # enqueued once more, captured, and launched again
        chain()
    assert backend.note is None
    assert gpu.cuda.names().count("cudaGraphLaunch") == 2
    assert gpu.cuda.violations == []


def test_read_only_caches_are_written_inside_the_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    """A step of the dialect primitive is one launch and one wait as well, at whatever position."""
    gpu = fake_gpu(tiny_bundle, tmp_path, variant="primitive-fp32")
    with gpu.session() as session:
        ask(session)
        decoder = session._decoder
        (slot,) = decoder.slots.all
        for _ in range(2):
            before = len(gpu.cuda.names())
            decoder.step_one(slot, np.zeros((1, 64), np.float32), slot.valid["trunk"])
            assert gpu.cuda.names()[before:] == ["cudaGraphLaunch", "cudaStreamSynchronize"]


def test_streamed_weights_are_not_captured(tiny_bundle: Path, tmp_path: Path) -> None:
    gpu = fake_gpu(tiny_bundle, tmp_path, streamable_bytes=1000)
    with gpu.session(EngineOptions(weights_on_device_bytes=400)) as session:
        ask(session)
    assert "cudaStreamBeginCapture" not in gpu.cuda.names()


def test_a_buffer_that_only_the_graph_writes_is_read_anew(gpu: FakeGpu) -> None:
    device = gpu.backend().device
    source, target = (DeviceBuffer.zeros(device, (3,), "float32") for _ in range(2))
    source.defer()
    graph = StepGraph(device, (lambda: target.copy_from(source),), (source,), ())
    for value in range(4):
        source.write(np.full(3, value, np.float32))
        graph()
        assert target.read().tolist() == [value] * 3
    assert "cudaGraphLaunch" in gpu.cuda.names()
