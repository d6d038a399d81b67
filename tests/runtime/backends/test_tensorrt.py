"""The runner of engines on fakes that record order, addresses and sizes, and that run all work as late as possible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdrpn.compare.simulation import runnable_bundle
from sdrpn.export import ExportOptions, export_bundle

pytest.importorskip("cuda.bindings.runtime")


from sdrpn.bundle.bundle import open_bundle
from sdrpn.errors import BadInput, ContextTooLong, EngineMismatch, RunFailed
from sdrpn.runtime import EngineOptions, Session
from sdrpn.runtime.backends.tensorrt_library import Library
from tests.runtime.asking import BEFORE, ask, buffers_for, conversation
from tests.runtime.gpu import FakeGpu, bf16_compute, fake_gpu


@pytest.fixture(scope="module")
def bf16_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / "bundle"
    export_bundle(tiny_checkpoint, path, ExportOptions("bf16"))
    export_bundle(tiny_checkpoint, path, ExportOptions("bf16", "primitive"))
    return path


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
    for answer, other in zip(found, expected, strict=True):
        assert answer.token_ids == other.token_ids
        assert answer.tokens == other.tokens
        assert answer.trace is not None
        assert other.trace is not None
        np.testing.assert_allclose(answer.trace.step_logits, other.trace.step_logits, atol=1e-5)
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
        caches = session._decoder.slots.caches["trunk"].buffers
        assert {buffer.dtype.name for buffer in caches.values()} == {"uint16"}
    for answer, other in zip(found, expected, strict=True):
        assert answer.token_ids == other.token_ids
        assert answer.trace is not None
        assert other.trace is not None
        np.testing.assert_allclose(answer.trace.step_logits, other.trace.step_logits, atol=0.05)
    assert gpu.cuda.violations == []


class TestAddresses:
    def test_caches_keep_theirs(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        for graph in ("trunk", "rpn", "tail"):
            runs = [entry.addresses for entry in gpu.trt.executions if entry.graph == graph]
            caches = [{name: address for name, address in run.items() if "cache" in name} for run in runs]
            assert len(runs) > 1
            assert all(run == caches[0] for run in caches)

    def test_only_the_cache_update_aliases_an_input_with_an_output(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        for run in gpu.trt.executions:
            for name, address in run.addresses.items():
                shared = {other for other, a in run.addresses.items() if a == address and other != name}
                assert shared <= {f"{name}_out", name.removesuffix("_out")}, (run.graph, name, shared)

    def test_the_tap_goes_from_trunk_to_rpn_and_tail_on_the_device(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        first = {run.graph: run for run in reversed(gpu.trt.executions) if run.shapes.get("tap", (0, 2))[1] > 1}
        assert first["trunk"].addresses["tap"] == first["rpn"].addresses["tap"] == first["tail"].addresses["tap"]
        tap = session._decoder.slots.taps
        copies = [call for call in gpu.cuda.calls if call[0] == "cudaMemcpyAsync"]
        inside = range(tap.pointer, tap.pointer + tap.size_bytes)  # type: ignore[attr-defined]
        assert not [call for call in copies if call[1] in inside or call[2] in inside]

    def test_image_tokens_go_from_vision_to_trunk_on_the_device(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        embeds = {run.addresses["image_embeds"] for run in gpu.trt.executions if run.graph == "vision"}
        hidden = {run.addresses["inputs_embeds"] for run in gpu.trt.executions if run.graph == "trunk"}
        moved = [(call[1], call[3]) for call in gpu.cuda.calls if call[0] == "cudaMemcpy2DAsync"]
        width = 4 * session.spec.llm.width
        starts = {start + len(BEFORE) * width for start in hidden}
        assert {source for target, source in moved if target in starts} == embeds
        size = session.spec.vision.image_tokens * width  # what is smaller was there later
        copies = [call for call in gpu.cuda.calls if call[0] == "cudaMemcpyAsync"]
        assert not [call for call in copies if call[2] in embeds and call[3] == size]

    def test_all_contexts_work_in_one_block(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        assert len({run.memory for run in gpu.trt.executions}) == 1
        assert len({run.context for run in gpu.trt.executions}) > 4

    def test_an_output_over_another_input_is_refused(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["trunk"], gpu.engine("trunk"))
        feeds, results = buffers_for(backend, runner)
        wrong = {**results, "tap": feeds["inputs_embeds"]}
        with pytest.raises(RunFailed, match=r"trunk: output tap is in the memory of input inputs_embeds; only a"):
            runner.bind(feeds, wrong)
        wrong = {**results, "key_cache.0_out": backend.allocate(feeds["key_cache.0"].shape, "float32")}
        with pytest.raises(RunFailed, match=r"key_cache.0_out updates key_cache.0 in place and must be bound to the"):
            runner.bind(feeds, wrong)
        wrong = {**results, "key_cache.0_out": feeds["value_cache.0"]}
        with pytest.raises(RunFailed, match=r"output key_cache.0_out is in the memory of input value_cache.0"):
            runner.bind(feeds, wrong)


class TestProfiles:
    def test_decode_steps_and_prefills_have_their_own(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        for run in gpu.trt.executions:
            rows = run.shapes.get("row_index", (1, 1))[1]
            expected = 1 if run.graph in ("trunk", "tail") and rows > 1 else 0
            assert run.profile == expected, (run.graph, rows)

    def test_each_runs_in_a_context_of_its_own(self, gpu: FakeGpu, session: Session) -> None:
        conversation(session)
        profiles: dict[int, set[tuple[str, int]]] = {}
        for run in gpu.trt.executions:
            profiles.setdefault(run.context, set()).add((run.graph, run.profile))
        assert all(len(found) == 1 for found in profiles.values())

    def test_shapes_that_none_has(self, gpu: FakeGpu) -> None:
        backend = gpu.backend()
        runner = backend.load(gpu.bundle.variant("fused-fp32").graphs["vision"], gpu.engine("vision"))
        feeds, results = buffers_for(backend, runner, batch=3)
        with pytest.raises(RunFailed, match=r"vision: no profile of the engine contains the shapes .*\(3, 3, 56, 56\)"):
            runner.bind(feeds, results)

    def test_rows_past_the_caches_are_refused(self, gpu: FakeGpu, session: Session) -> None:
        ask(session)
        decoder = session._decoder
        (slot,) = decoder.slots.all
        assert decoder.slots.max_rows == decoder.slots.length == 128
        before = len(gpu.trt.executions)
        with pytest.raises(RunFailed, match="2 rows at 127 are past the cache of 128 rows"):
            decoder.run_trunk(slot, np.zeros((2, 64), np.float32), 127)
        slot.valid = dict.fromkeys(slot.valid, 128)
        with pytest.raises(RunFailed, match="row 128 is past the cache of 128 rows"):
            decoder.step_one(slot, np.zeros((1, 64), np.float32), 128)
        with pytest.raises(RunFailed, match="129 rows exceed the caches of 128 rows that the engines were built for"):
            decoder.slots.reserve(slot, 129)
        assert len(gpu.trt.executions) == before
        with pytest.raises(ContextTooLong, match=r"need 1\d\d positions, the bundle has 128"):
            ask(session, max_new_tokens=120)


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
        """Version-compatible engines of TensorRT contain some."""
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
        with pytest.raises(
            BadInput, match=r"engine was built without weight streaming; build it with weight streaming"
        ):
            gpu.session(EngineOptions(weights_on_device_bytes=1))
        with pytest.raises(BadInput, match="weights_on_device_bytes is -1"):
            EngineOptions(weights_on_device_bytes=-1)
