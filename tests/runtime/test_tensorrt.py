"""The runner of engines on fakes that record order, addresses and sizes, and that run all work as late as possible."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.runtime")

from cuda.bindings import runtime as real

from sdrpn.bundle import open_bundle
from sdrpn.compare.simulation import runnable_bundle
from sdrpn.errors import BadInput, ContextTooLong, EngineMismatch, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.roi import Crop, RoiDecision
from sdrpn.runtime import Answer, EngineOptions, Session
from sdrpn.runtime.backends.device_buffer import DeviceBuffer
from sdrpn.runtime.backends.step_graph import StepGraph
from sdrpn.runtime.backends.tensorrt import RuntimeCache
from sdrpn.runtime.backends.tensorrt_library import Library
from tests.damage import copied
from tests.runtime.gpu import FakeGpu, bf16_compute, fake_gpu

BEFORE, QUESTION, OTHER = (1, 5, 6, 7), (8, 9, 10, 11, 12), (20, 21, 22)
NEW_TOKENS = 6


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def one_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (Crop((10, 5, 60, 50)),), None, logits)


def no_box(logits: np.ndarray, image_wh: tuple[int, int]) -> RoiDecision:
    return RoiDecision(np.zeros((0, 4), np.int64), (), None, logits)


def ask(session: Session, question: tuple[int, ...] = QUESTION, decide: Any = one_box, **options: Any) -> Answer:
    options = {"max_new_tokens": NEW_TOKENS, "trace": True, **options}
    return session.answer_ids(picture(), BEFORE, question, roi=None, decide=decide, **options)


def conversation(session: Session) -> list[Answer]:
    """With a crop, on the same image again, without a crop, and of one token, which a decode profile fits as well."""
    return [ask(session), ask(session, OTHER), ask(session, decide=no_box), ask(session, (9,))]


@pytest.fixture(scope="module")
def bf16_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / "bundle"
    export_bundle(tiny_checkpoint, path, ExportOptions("bf16"))
    export_bundle(tiny_checkpoint, path, ExportOptions("bf16", "primitive"))
    return path


@pytest.fixture
def gpu(tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    return fake_gpu(tiny_bundle, tmp_path)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def any_gpu(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> FakeGpu:
    return fake_gpu(tiny_bundle, tmp_path, flavour=request.param)


@pytest.fixture
def session(gpu: FakeGpu) -> Iterator[Session]:
    with gpu.session() as opened:
        yield opened


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("integrated", [False, True], ids=["discrete", "integrated"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["captured", "enqueued"])
def test_the_same_answers_as_onnxruntime(
    tiny_bundle: Path, tmp_path: Path, variant: str, flavour: str, integrated: bool, cuda_graph: bool
) -> None:
    """Nothing is read before it is there, nothing is written while it is needed, nothing is freed too early."""
    gpu = fake_gpu(tiny_bundle, tmp_path, variant=variant, flavour=flavour, integrated=integrated)
    with Session.open(tiny_bundle, backend="onnxruntime", variant=variant, threads=1) as plain:
        expected = conversation(plain)
    with gpu.session(EngineOptions(cuda_graph=cuda_graph)) as session:
        found = conversation(session)
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.tokens == other.tokens
        assert one.trace is not None
        assert other.trace is not None
        np.testing.assert_allclose(one.trace.step_logits, other.trace.step_logits, atol=1e-5)
    assert gpu.cuda.violations == []


@pytest.mark.parametrize("variant", ["fused-bf16", "primitive-bf16"])
def test_caches_in_bf16(bf16_bundle: Path, tmp_path: Path, variant: str) -> None:
    bundle = open_bundle(bf16_bundle)
    gpu = fake_gpu(bf16_bundle, tmp_path, variant=variant, compute=bf16_compute(bundle, variant))
    with (
        runnable_bundle(bundle, bundle.variant(variant)) as simulated,
        Session.open(simulated.path, backend="onnxruntime", variant=variant, threads=1) as plain,
    ):
        expected = conversation(plain)
    with gpu.session() as session:
        found = conversation(session)
        caches = session._decoder._caches["trunk"].buffers
        assert {buffer.dtype.name for buffer in caches.values()} == {"uint16"}
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        assert one.trace is not None
        assert other.trace is not None
        np.testing.assert_allclose(one.trace.step_logits, other.trace.step_logits, atol=0.05)
    assert gpu.cuda.violations == []


class TestAddresses:
    def test_caches_keep_theirs(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        for graph in ("trunk", "rpn", "tail"):
            runs = [one.addresses for one in gpu.trt.executions if one.graph == graph]
            caches = [{name: address for name, address in run.items() if "cache" in name} for run in runs]
            assert len(runs) > 1
            assert all(run == caches[0] for run in caches)

    def test_only_the_cache_update_aliases_an_input_with_an_output(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        for one in gpu.trt.executions:
            for name, address in one.addresses.items():
                shared = {other for other, a in one.addresses.items() if a == address and other != name}
                assert shared <= {f"{name}_out", name.removesuffix("_out")}, (one.graph, name, shared)

    def test_the_tap_goes_from_trunk_to_rpn_and_tail_on_the_device(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        first = {one.graph: one for one in reversed(gpu.trt.executions) if one.shapes.get("tap", (0, 2))[1] > 1}
        assert first["trunk"].addresses["tap"] == first["rpn"].addresses["tap"] == first["tail"].addresses["tap"]
        tap = session._decoder._taps
        copies = [call for call in gpu.cuda.calls if call[0] == "cudaMemcpyAsync"]
        inside = range(tap.pointer, tap.pointer + tap.size_bytes)  # type: ignore[attr-defined]
        assert not [call for call in copies if call[1] in inside or call[2] in inside]

    def test_image_tokens_go_from_vision_to_trunk_on_the_device(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        embeds = {one.addresses["image_embeds"] for one in gpu.trt.executions if one.graph == "vision"}
        hidden = {one.addresses["inputs_embeds"] for one in gpu.trt.executions if one.graph == "trunk"}
        moved = [(call[1], call[3]) for call in gpu.cuda.calls if call[0] == "cudaMemcpy2DAsync"]
        width = 4 * session.spec.llm.width
        starts = {start + len(BEFORE) * width for start in hidden}
        assert {source for target, source in moved if target in starts} == embeds
        size = session.spec.vision.image_tokens * width  # what is smaller was there later
        copies = [call for call in gpu.cuda.calls if call[0] == "cudaMemcpyAsync"]
        assert not [call for call in copies if call[2] in embeds and call[3] == size]

    def test_all_contexts_work_in_one_block(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        assert len({one.memory for one in gpu.trt.executions}) == 1
        assert len({one.context for one in gpu.trt.executions}) > 4

    def test_an_output_over_another_input_is_refused(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["trunk"], gpu.engine("trunk"))
        feeds, results = buffers_for(backend, runner)
        wrong = {**results, "tap": feeds["inputs_embeds"]}
        with pytest.raises(RunFailed, match=r"trunk: output tap lies in the memory of input inputs_embeds; only a"):
            runner.bind(feeds, wrong)
        wrong = {**results, "key_cache.0_out": backend.allocate(feeds["key_cache.0"].shape, "float32")}
        with pytest.raises(RunFailed, match=r"key_cache.0_out updates key_cache.0 in place and must be bound to the"):
            runner.bind(feeds, wrong)
        wrong = {**results, "key_cache.0_out": feeds["value_cache.0"]}
        with pytest.raises(RunFailed, match=r"output key_cache.0_out lies in the memory of input value_cache.0"):
            runner.bind(feeds, wrong)


def buffers_for(backend: Any, runner: Any, batch: int = 1, rows: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and outputs of one run, caches bound to both sides."""
    extents = {"batch": batch, "sequence": rows, "cache_length": 128, "images": batch}
    shapes = {
        name: tuple(extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
        for name, tensor in {**runner.inputs, **runner.outputs}.items()
    }
    feeds = {name: backend.allocate(shapes[name], tensor.dtype) for name, tensor in runner.inputs.items()}
    results = {
        name: feeds.get(name.removesuffix("_out")) or backend.allocate(shapes[name], tensor.dtype)
        for name, tensor in runner.outputs.items()
    }
    return feeds, results


class TestProfiles:
    def test_decode_steps_and_prefills_have_their_own(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        for one in gpu.trt.executions:
            rows = one.shapes.get("position_ids", (1, 1))[1]
            expected = 1 if one.graph in ("trunk", "tail") and rows > 1 else 0
            assert one.profile == expected, (one.graph, rows)

    def test_each_runs_in_a_context_of_its_own(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        profiles: dict[int, set[tuple[str, int]]] = {}
        for one in gpu.trt.executions:
            profiles.setdefault(one.context, set()).add((one.graph, one.profile))
        assert all(len(found) == 1 for found in profiles.values())

    def test_shapes_that_none_has(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["vision"], gpu.engine("vision"))
        feeds, results = buffers_for(backend, runner, batch=3)
        with pytest.raises(RunFailed, match=r"vision: no profile of the engine has the shapes .*\(3, 3, 56, 56\)"):
            runner.bind(feeds, results)

    def test_rows_past_the_caches_are_refused(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        decoder = session._decoder
        assert decoder.max_rows == decoder.length == 128
        before = len(gpu.trt.executions)
        with pytest.raises(RunFailed, match="2 rows at 127 are past the cache of 128 rows"):
            decoder.run_trunk(np.zeros((2, 64), np.float32), 127)
        decoder.valid = dict.fromkeys(decoder.valid, 128)
        with pytest.raises(RunFailed, match="position 128 is past the cache of 128 rows"):
            decoder.step(np.zeros((1, 64), np.float32), 128)
        with pytest.raises(RunFailed, match="129 rows are past the caches of 128 rows that the engines were built for"):
            decoder.reserve(129)
        assert len(gpu.trt.executions) == before
        with pytest.raises(ContextTooLong, match=r"need 1\d\d positions, the bundle has 128"):
            ask(session, max_new_tokens=120)


class TestDecodeGraph:
    def test_one_is_captured_after_a_first_step(self, gpu: FakeGpu, session: Session) -> None:
        ask(session, max_new_tokens=NEW_TOKENS)  # one token comes from the prefill
        calls = gpu.cuda.names()
        assert calls.count("cudaGraphInstantiate") == calls.count("cudaStreamBeginCapture") == 1
        assert calls.count("cudaGraphLaunch") == NEW_TOKENS - 2
        decoding = [one for one in gpu.trt.executions if one.graph != "vision" and one.shapes["position_ids"] == (1, 1)]
        assert [one.graph for one in decoding] == ["trunk", "tail"] * 2  # enqueued, captured, and never again

    def test_it_holds_host_to_device_engines_and_device_to_host(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        (graph,) = gpu.cuda.graphs.values()
        assert [one.name for one in graph] == ["copy"] * 3 + ["trunk", "tail", "copy"]
        ask(session, OTHER)
        assert len(gpu.cuda.graphs) == 1  # the next answer launches the same

    def test_a_step_is_one_launch_and_one_wait(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        decoder = session._decoder
        position = decoder.valid["trunk"]
        before = len(gpu.cuda.calls)
        decoder.step(np.zeros((1, 64), np.float32), position)
        assert gpu.cuda.names()[before:] == ["cudaGraphLaunch", "cudaStreamSynchronize"]

    def test_a_batch_size_has_its_own(self, gpu: FakeGpu) -> None:
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
        shapes = [one.shapes["tap"][0] for one in gpu.trt.executions]
        assert shapes == [1, 2, 1, 2]
        assert len({one.context for one in gpu.trt.executions}) == 2

    def test_tensorrt_rtx_captures_by_itself(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
        with gpu.session() as session:
            ask(session)
        assert "cudaStreamBeginCapture" not in gpu.cuda.names()
        decoding = [one for one in gpu.trt.executions if one.shapes.get("position_ids") == (1, 1)]
        assert decoding
        assert all(one.own_graph for one in decoding)
        assert not [one for one in gpu.trt.executions if one.own_graph and one not in decoding]

    def test_what_cannot_be_captured_says_how_to_do_without(self, gpu: FakeGpu, session: Session) -> None:
        decoder = session._decoder
        ask(session, max_new_tokens=2)  # a first step
        gpu.trt.refusals.add("execute_async_v3")
        with pytest.raises(RunFailed, match=r"the decode step cannot be captured: trunk.engine: tensorrt refused .*\("):
            decoder.step(np.zeros((1, 64), np.float32), decoder.valid["trunk"])
        assert gpu.cuda.capturing is None  # the stream can be used again
        gpu.trt.refusals.clear()
        ask(session)

    def test_streamed_weights_are_not_captured(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, streamable_bytes=1000)
        with gpu.session(EngineOptions(weights_on_device_bytes=400)) as session:
            ask(session)
        assert "cudaStreamBeginCapture" not in gpu.cuda.names()


class TestMemory:
    def test_everything_is_given_back(self, any_gpu: FakeGpu) -> None:
        with any_gpu.session() as session:
            conversation(session)
            most = sum(size for size, _, _ in any_gpu.cuda.live.values())
        assert sum(size for size, _, _ in any_gpu.cuda.live.values()) < most / 10  # the logits, and a staging buffer
        del session
        gc.collect()
        assert any_gpu.cuda.violations == []
        assert any_gpu.cuda.live == {}
        assert any_gpu.cuda.graphs == {}
        assert any_gpu.cuda.names()[-1] == "cudaStreamDestroy"

    def test_the_fake_would_notice_memory_that_is_freed_too_early(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        buffer = backend.allocate((64,), "float32")
        buffer._device.cuda.free(buffer.pointer)
        assert gpu.cuda.violations == ["memory is freed while clear may still use it"]

    def test_a_second_question_allocates_nothing_new(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        before = gpu.cuda.names().count("cudaMalloc"), gpu.cuda.names().count("cudaHostAlloc")
        conversation(session)
        assert (gpu.cuda.names().count("cudaMalloc"), gpu.cuda.names().count("cudaHostAlloc")) == before

    def test_what_is_kept_for_later_goes_back_when_memory_runs_out(self, gpu: FakeGpu) -> None:
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

    def test_garbage_that_is_collected_during_a_capture_does_not_spoil_it(self, gpu: FakeGpu) -> None:
        device = gpu.backend().device
        garbage = [DeviceBuffer.zeros(device, (1 << 27,), "float32")]
        graph = StepGraph(device, (garbage.clear,), (), ())
        graph()
        assert "cudaFree" in gpu.cuda.names()
        garbage.append(DeviceBuffer.zeros(device, (1 << 27,), "float32"))
        graph()
        calls = gpu.cuda.names()
        begin = calls.index("cudaStreamBeginCapture")
        assert calls[begin + 1] == "cudaStreamEndCapture"

    def test_an_integrated_gpu_copies_nothing_to_and_fro(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, integrated=True)
        with gpu.session() as session:
            ask(session)
        assert "cudaMemcpyAsync" not in gpu.cuda.names()
        assert "cudaHostGetDevicePointer" in gpu.cuda.names()

    def test_what_was_read_stays_when_its_buffer_goes(self, gpu: FakeGpu) -> None:
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


CUDA_CALLS = {
    "cudaGetDeviceCount": "open",
    "cudaSetDevice": "open",
    "cudaGetDeviceProperties": "open",
    "cudaStreamCreateWithFlags": "open",
    "cudaMalloc": "open",
    "cudaMemsetAsync": "open",
    "cudaHostAlloc": "ask",
    "cudaMemcpyAsync": "ask",
    "cudaMemcpy2DAsync": "ask",
    "cudaStreamSynchronize": "ask",
    "cudaStreamBeginCapture": "ask",
    "cudaStreamEndCapture": "ask",
    "cudaGraphInstantiate": "ask",
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
    with pytest.raises(RunFailed, match="CUDA shows no GPU; `sdrpn doctor` shows what is missing"):
        gpu.session()


class TestLoading:
    @pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11"])
    def test_engines_are_read_through_a_stream_reader(self, tiny_bundle: Path, tmp_path: Path, version: str) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, version=version)
        with gpu.session():
            sizes = [gpu.engine(graph).stat().st_size for graph in ("vision", "trunk", "rpn", "tail")]
            assert sorted(gpu.trt.reads) == sorted(sizes)

    def test_large_ones_in_pieces(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
        from sdrpn.runtime.backends import tensorrt_library

        monkeypatch.setattr(tensorrt_library, "_PIECE_BYTES", 6)
        with gpu.session():
            assert max(gpu.trt.reads) == 6

    @pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
    def test_code_in_engines_runs_only_where_it_is_allowed(
        self, tiny_bundle: Path, tmp_path: Path, flavour: str
    ) -> None:
        """Version-compatible engines of TensorRT bring some along."""
        gpu = fake_gpu(tiny_bundle, tmp_path, flavour=flavour)
        library = Library(flavour, gpu.trt)
        path = gpu.engine("trunk")
        assert not hasattr(library.load(path)._runtime, "engine_host_code_allowed")
        allowed = library.load(path, host_code=True)._runtime
        assert getattr(allowed, "engine_host_code_allowed", False) is (flavour == "tensorrt")

    def test_an_engine_of_another_graph(self, gpu: FakeGpu) -> None:
        graph = gpu.bundle.variant("fused-fp32").graphs["trunk"]
        with pytest.raises(EngineMismatch, match=r"tail.engine has the tensors \[.*the graph trunk has \["):
            gpu.backend().load(graph, gpu.engine("tail"))

    def test_a_closed_session_runs_nothing(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["trunk"], gpu.engine("trunk"))
        step = runner.bind(*buffers_for(backend, runner))
        runner.close()
        runner.close()
        for use in (step, lambda: runner.bind({}, {})):
            with pytest.raises(RunFailed, match="the trunk graph was closed; open the session again"):
                use()

    @pytest.mark.parametrize(("budget", "expected"), [(None, 500), (300, 300), (0, 0)])
    def test_weight_streaming(self, tiny_bundle: Path, tmp_path: Path, budget: int | None, expected: int) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, streamable_bytes=1000)
        backend = gpu.backend(EngineOptions(weights_on_device_bytes=budget))
        runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["trunk"], gpu.engine("trunk"))
        assert runner.engine._engine.weight_streaming_budget_v2 == expected

    def test_weight_streaming_of_engines_that_cannot(self, gpu: FakeGpu) -> None:
        with pytest.raises(BadInput, match=r"engine was built without weight streaming; build it with --weight"):
            gpu.session(EngineOptions(weights_on_device_bytes=1))
        with pytest.raises(BadInput, match="weights_on_device_bytes is -1"):
            EngineOptions(weights_on_device_bytes=-1)

    def test_what_tensorrt_rtx_compiles_is_kept(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
        options = EngineOptions(runtime_cache_dir=tmp_path / "caches")
        for _ in range(2):
            with gpu.session(options) as session:
                ask(session)
        files = sorted(path.name for path in (tmp_path / "caches").iterdir())
        assert files == [f"rtx-4090.{graph}.rtx-cache" for graph in ("rpn", "tail", "trunk", "vision")]
        assert (tmp_path / "caches" / files[0]).read_bytes() == b"compiled compiled "

    def test_a_cache_that_the_library_does_not_take(self, tiny_bundle: Path, tmp_path: Path) -> None:
        gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
        gpu.trt.refusals.add("set_runtime_cache")
        with (
            pytest.raises(RunFailed, match=r"vision.engine: tensorrt-rtx refused IRuntimeConfig.set_runtime_cache"),
            gpu.session(EngineOptions(runtime_cache_dir=tmp_path / "caches")) as session,
        ):
            ask(session)

    def test_a_place_for_it_that_cannot_be_written(self, tiny_bundle: Path, tmp_path: Path) -> None:
        """Said before anything is computed."""
        gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
        (tmp_path / "file").touch()
        with pytest.raises(BadInput, match=r"rtx-cache cannot be written: .*/file is a file, expected a folder"):
            gpu.session(EngineOptions(runtime_cache_dir=tmp_path / "file"))

    def test_a_disk_that_is_full_by_then(
        self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was loaded goes all the same."""
        gpu = fake_gpu(tiny_bundle, tmp_path, flavour="tensorrt-rtx")
        session = gpu.session(EngineOptions(runtime_cache_dir=tmp_path / "caches"))
        ask(session)

        def fail(cache: object) -> None:
            raise RunFailed("the disk is full")

        monkeypatch.setattr(RuntimeCache, "save", fail)
        with pytest.raises(RunFailed, match="the disk is full"):
            session.close()
        session.close()
        del session
        gc.collect()
        assert (gpu.cuda.live, gpu.cuda.violations) == ({}, [])


class Foreign:
    """A tensor of another library."""

    def __init__(self, buffer: Any, **changes: Any) -> None:
        self.__cuda_array_interface__ = {**buffer.__cuda_array_interface__, **changes}


class TestOtherLibraries:
    def test_a_buffer_is_offered_to_them(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        buffer = backend.allocate((2, 3), "float16")
        assert buffer.__cuda_array_interface__ == {
            "shape": (2, 3),
            "typestr": "<f2",
            "data": (buffer.pointer, False),
            "strides": None,
            "version": 3,
            "stream": backend.device.stream.address,
        }

    def test_their_tensors_are_taken_without_a_copy(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        theirs = backend.allocate((2, 3), "float32")
        theirs.write(np.ones((2, 3), np.float32))
        before = len(gpu.cuda.calls)
        ours = backend.wrap(Foreign(theirs, strides=(12, 4), stream=7))
        assert gpu.cuda.calls[before:] == [("cudaStreamSynchronize", 7)]  # what they still compute
        assert (ours.pointer, ours.shape) == (theirs.pointer, theirs.shape)
        target = backend.allocate((2, 3), "float32")
        target.write(Foreign(theirs))  # type: ignore[arg-type]
        np.testing.assert_array_equal(target.read(), 1)

    def test_what_cannot_be_taken(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        theirs = backend.allocate((2, 3), "float32")
        with pytest.raises(BadInput, match="ndarray has no __cuda_array_interface__; expected a tensor on the GPU"):
            backend.wrap(np.zeros(3))
        with pytest.raises(BadInput, match=r"strides are \(4, 8\); expected a contiguous one"):
            backend.wrap(Foreign(theirs, strides=(4, 8)))
        with pytest.raises(BadInput, match=r"the tensor is float32 \(2, 3\); expected float32 \(3, 2\)"):
            backend.allocate((3, 2), "float32").write(Foreign(theirs))  # type: ignore[arg-type]


class TestOpen:
    @pytest.fixture
    def opened(self, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
        """Session.open on a machine that the engines fit."""
        from sdrpn.runtime import choice, preflight
        from sdrpn.runtime import session as session_module
        from tests.runtime.engine_files import platform

        class Silent:
            def validity(self, path: Path) -> None:
                return None

        monkeypatch.setattr(choice, "read_platform", lambda: platform("tensorrt"))
        monkeypatch.setattr(preflight, "open_library", lambda flavour: Silent())
        monkeypatch.setattr(session_module, "open_tensorrt", lambda flavour, options, host_code: gpu.backend(options))
        return lambda **options: Session.open(gpu.bundle.path, **options)

    def test_engines_are_chosen_where_they_fit(self, opened: Callable[..., Session]) -> None:
        for options in ({}, {"backend": "tensorrt"}, {"target": "rtx-4090"}, {"variant": "fused-fp32"}):
            with opened(**options) as session:
                assert (session.backend, session.variant.name) == ("tensorrt", "fused-fp32")
                ask(session)

    def test_and_not_where_something_else_is_asked_for(self, opened: Callable[..., Session]) -> None:
        for options in ({"backend": "onnxruntime"}, {"variant": "primitive-fp32"}):
            with opened(**options) as session:
                assert session.backend == "onnxruntime"

    def test_engines_need_no_onnx_files(self, gpu: FakeGpu, opened: Callable[..., Session]) -> None:
        for path in (*gpu.bundle.path.glob("*.onnx"), *(gpu.bundle.path / "weights").glob("t*.bin")):
            path.unlink()
        with opened() as session:
            assert session.backend == "tensorrt"

    def test_engines_that_do_not_fit_are_named_and_not_used(
        self, gpu: FakeGpu, opened: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpu.engine("trunk").write_bytes(b"changed")
        with opened() as session:
            assert session.backend == "onnxruntime"
            assert session.backend_note is not None
            assert re.match(r"the engines of rtx-4090 are not used: trunk: MALFORMED_ENGINE: ", session.backend_note)
        for options in ({"backend": "tensorrt"}, {"target": "rtx-4090"}):
            with pytest.raises(EngineMismatch, match=r"engines of rtx-4090: trunk: MALFORMED_ENGINE: engine.size"):
                opened(**options)

    def test_what_cannot_be_asked(self, opened: Callable[..., Session], tiny_bundle: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="backend 'tpu' is unknown; expected one of auto, onnxruntime, "):
            opened(backend="tpu")
        with pytest.raises(BadInput, match="target l4 is about engines, which onnxruntime does not run; use the"):
            opened(backend="onnxruntime", target="l4")
        with pytest.raises(
            EngineMismatch, match="are of variant fused-fp32, not primitive-fp32; leave the variant out"
        ):
            opened(target="rtx-4090", variant="primitive-fp32")
        with pytest.raises(EngineMismatch, match="has no engines of variant primitive-fp32; leave the variant out"):
            opened(backend="tensorrt", variant="primitive-fp32")
        with pytest.raises(BadInput, match="has no engines; build them: sdrpn build"):
            Session.open(tiny_bundle, backend="tensorrt")

    def test_without_a_gpu_onnxruntime_answers(self, gpu: FakeGpu) -> None:
        """Nothing is faked here: this machine, or one where the engines' library is not installed."""
        bundle = open_bundle(copied(gpu.bundle.path, gpu.bundle.path.parent / "again"))
        with Session.open(bundle.path) as session:
            assert session.backend == "onnxruntime"
