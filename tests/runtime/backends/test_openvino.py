"""OpenVINO behind the seam: every graph equals ONNX Runtime, what it refuses, and that a decode step copies nothing."""

from __future__ import annotations

import dataclasses
import errno
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, GraphInfo, open_bundle
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.errors import BadBundle, BadInput, Cancelled, MissingDependency, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host.machine import Cpu, read_cpu
from sdrpn.host.working_folder import NoFolderOfItsOwn
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import Session
from sdrpn.runtime.backends import open_backend, openvino_info
from sdrpn.runtime.backends.arrays import run_on_arrays
from sdrpn.runtime.backends.info import OpenOptions
from sdrpn.runtime.backends.openvino_info import is_faster
from sdrpn.runtime.backends.registry import backend_info as info_of
from sdrpn.runtime.backends.row_feeds import trial_rows
from sdrpn.runtime.backends.runner import Array, Backend
from sdrpn.runtime.select import choose_backend
from tests.damage import copied
from tests.pictures import photo
from tests.tolerances import BF16_TOWER_SHARE, INT8_ACTIVATIONS_SHARE, PARITY_ABS, PARITY_FP16_ABS

openvino = pytest.importorskip("openvino")
openvino_graph = pytest.importorskip("sdrpn.runtime.backends.openvino_graph")
openvino_backend = pytest.importorskip("sdrpn.runtime.backends.openvino")
openvino_device = pytest.importorskip("sdrpn.runtime.backends.openvino_device")
openvino_runner = pytest.importorskip("sdrpn.runtime.backends.openvino_runner")

QUESTION = "What does the sign say?"
BF16_FEATURES = openvino_device.BF16_FEATURES
GRAPHS = ("vision", "trunk", "rpn", "tail")
# First new row, new rows, sequences, rows of the caches: from nothing, behind others, a step, a step of several.
PLACES = [(0, 40, 1, 96), (33, 50, 1, 128), (70, 1, 1, 128), (5, 1, 3, 64)]


@pytest.fixture(scope="module")
def windowed_bundle(tiny_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each row attends to nine rows."""
    folder = tmp_path_factory.mktemp("windowed")
    spec = dataclasses.replace(tiny_spec, llm=dataclasses.replace(tiny_spec.llm, sliding_window=9))
    write_random_checkpoint(folder / "checkpoint", spec)
    export_bundle(folder / "checkpoint", folder / "bundle", ExportOptions("fp32", "fused"))
    return folder / "bundle"


@pytest.fixture(scope="module")
def libraries() -> tuple[Backend, Backend]:
    return open_backend("onnxruntime", 1), open_backend("openvino", 1)


def fail(*arguments: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def loaded(backend: Backend, bundle: Bundle, graph: str) -> Any:
    info: GraphInfo = bundle.variant("fused-fp32").graphs[graph]
    return backend.load(info, bundle.file(info.file))


def feeds_of(runner: Any, start: int, rows: int, batch: int, length: int) -> dict[str, Array]:
    """Random hidden states, and caches whose first rows are random; all sequences are at the same rows."""
    rng = np.random.default_rng(start + rows)
    extents = {"batch": batch, "images": batch, "sequence": rows, "cache_length": length}
    placed = trial_rows(runner.inputs.values(), start, start + rows)
    feeds: dict[str, Array] = {}
    for name, tensor in runner.inputs.items():
        shape = tuple(extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims)
        if name in placed:
            feeds[name] = np.repeat(placed[name], batch, axis=0)
            continue
        feeds[name] = rng.standard_normal(shape).astype(tensor.storage)
        if tensor.is_cache:
            feeds[name][:, :, start:] = 0
    return feeds


@pytest.mark.parametrize("place", PLACES, ids=["first", "behind others", "a step", "a step of three"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_equal_those_of_onnx_runtime(
    libraries: tuple[Backend, Backend], text_bundle: Path, graph: str, place: tuple[int, int, int, int]
) -> None:
    """The key heads of this model serve two query heads each."""
    bundle = open_bundle(text_bundle)
    runners = [loaded(library, bundle, graph) for library in libraries]
    feeds = feeds_of(runners[0], *place)
    expected, found = (
        run_on_arrays(library, runner, feeds) for library, runner in zip(libraries, runners, strict=True)
    )
    assert expected.keys() == found.keys()
    start, rows, *_ = place
    for name, values in expected.items():
        # Scores of rows that were never written are those of whatever is there.
        seen = slice(None, start + rows) if name == "scores" else slice(None)
        difference = np.abs(values[..., seen] - found[name][..., seen]).max()
        assert difference <= PARITY_ABS, f"{name} of {graph} differs by {difference:.2e}"


def test_a_window_hides_the_rows_before_it(libraries: tuple[Backend, Backend], windowed_bundle: Path) -> None:
    bundle = open_bundle(windowed_bundle)
    runners = [loaded(library, bundle, "trunk") for library in libraries]
    for place in PLACES:
        feeds = feeds_of(runners[0], *place)
        expected, found = (
            run_on_arrays(library, runner, feeds)["tap"] for library, runner in zip(libraries, runners, strict=True)
        )
        difference = np.abs(expected - found).max()
        assert difference <= PARITY_ABS, f"taps differ by {difference:.2e}"


class TestOpening:
    def test_a_library_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        expected = r"backend openvino needs OpenVINO, which cannot be imported \(.*\); install it: .*\[openvino\]"
        with pytest.raises(MissingDependency, match=expected):
            open_backend("openvino")

    @pytest.mark.parametrize(
        ("fixture", "variant", "reason"),
        [
            ("tiny_bundle", "primitive-fp32", "which would copy all keys and values for every token"),
            ("coded_bundle", "fused-fp32-kv-int8", "which would compute with all rows of its coded caches"),
        ],
    )
    def test_variants_that_would_be_slow(
        self, request: pytest.FixtureRequest, fixture: str, variant: str, reason: str
    ) -> None:
        expected = rf"as {variant} cannot be used with openvino: {reason}.*; use the variant fused-fp32$"
        with pytest.raises(BadInput, match=expected):
            Session.open(request.getfixturevalue(fixture), backend="openvino", variant=variant)


class TestDevices:
    """Only a CPU is here; the forms of the others are compiled for it."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            (
                "GPU",
                r"OpenVINO sees no device GPU on this machine \(a GPU needs Intel's .*\); expected CPU or AUTO$",
            ),
            (
                "NPU",
                r"OpenVINO sees no device NPU on this machine \(an NPU needs Intel's .*\); expected CPU or AUTO$",
            ),
            ("cpu", "device 'cpu' is none of OpenVINO's; expected CPU, GPU, GPU.1, NPU or AUTO"),
        ],
    )
    def test_one_that_is_not_here(
        self, text_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
    ) -> None:
        monkeypatch.setattr(openvino.Core, "available_devices", property(lambda core: ["CPU"]))
        with pytest.raises(BadInput, match=expected):
            Session.open(text_bundle, device=name)

    @pytest.mark.parametrize(
        ("device", "options", "expected"),
        [
            (
                "GPU",
                {"kv_cache": "int8"},
                "kv_cache is int8, for OpenVINO's device CPU; GPU holds caches as the graphs",
            ),
            (
                "NPU",
                {"kv_cache": "int8"},
                "kv_cache is int8, for OpenVINO's device CPU; NPU holds caches as the graphs",
            ),
            ("NPU", {"activation_block": 0}, "activation_block is 0, for OpenVINO's devices CPU and GPU; NPU chooses"),
            ("NPU", {"accurate": True}, "accurate is for OpenVINO's devices CPU and GPU; NPU chooses its own types"),
            ("GPU", {"decode_copy": True}, "decode_copy is for OpenVINO's device CPU, which has native decode steps"),
            ("GPU", {"vision_type": "bf16"}, "vision_type is bf16, for OpenVINO's device CPU; GPU chooses its own"),
        ],
    )
    def test_an_option_that_it_would_ignore(
        self, text_bundle: Path, monkeypatch: pytest.MonkeyPatch, device: str, options: dict[str, Any], expected: str
    ) -> None:
        monkeypatch.setattr(openvino.Core, "available_devices", property(lambda core: ["CPU", "GPU", "NPU"]))
        with pytest.raises(BadInput, match=expected):
            Session.open(text_bundle, backend="openvino", device=device, **options)

    def test_another_library_has_no_names(self, text_bundle: Path) -> None:
        with pytest.raises(BadInput, match="onnxruntime has no device 'CPU', which is one of openvino; expected the n"):
            Session.open(text_bundle, backend="onnxruntime", device="CPU")

    @pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
    def test_the_number_of_a_gpu_is_refused_on_a_cpu(self, text_bundle: Path, backend: str) -> None:
        expected = f"{backend} has no device 0, which is the number of an NVIDIA GPU, as onnxruntime-cuda and tensorrt"
        with pytest.raises(BadInput, match=expected):
            Session.open(text_bundle, backend=backend, device=0)

    def test_the_automatic_one(self, text_bundle: Path) -> None:
        with Session.open(text_bundle, device="AUTO", variant="fused-fp32", threads=1) as session:
            assert session.backend == "openvino"
            assert session._library.device.name == "CPU"  # type: ignore[attr-defined]

    def test_those_that_are_seen_are_listed(self) -> None:
        assert re.match(r"CPU \(.+\)$", openvino_device.seen_devices()[0])

    @pytest.mark.parametrize("fixed", [False, True], ids=["any extents", "fixed extents"])
    def test_without_pages_answers_are_the_same(
        self, text_bundle: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
    ) -> None:
        """As on a GPU, whose graphs take any extents, and as on an NPU."""
        with Session.open(text_bundle, backend="onnxruntime", variant="fused-fp32", threads=1) as session:
            expected = session.answer(photo(), QUESTION, max_new_tokens=6, trace=True)
        monkeypatch.setattr(openvino_device.OpenVinoDevice, "paged", False)
        monkeypatch.setattr(openvino_device.OpenVinoDevice, "fixed_extents", fixed)
        with Session.open(text_bundle, device="CPU", variant="fused-fp32", threads=1) as session:
            found = session.answer(photo(), QUESTION, max_new_tokens=6, trace=True)
        assert found.token_ids == expected.token_ids
        assert found.boxes_xyxy_px == expected.boxes_xyxy_px

    def test_options_of_each(self) -> None:
        def options(name: str, **changed: Any) -> dict[str, Any]:
            asked = {"threads": 3, "half_caches": True, "activation_block": 32, "accurate": False, **changed}
            return dict(openvino_device.OpenVinoDevice(name).options(**asked))

        assert options("CPU")["KV_CACHE_PRECISION"] == "f16"
        assert options("CPU", half_caches=False)["KV_CACHE_PRECISION"] == "f32"
        assert options("CPU")["INFERENCE_NUM_THREADS"] == 3
        assert [options("CPU", bf16=bf16)["INFERENCE_PRECISION_HINT"] for bf16 in (False, True)] == ["f32", "bf16"]
        assert options("GPU.1") == {"PERFORMANCE_HINT": "LATENCY", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}
        assert options("GPU", accurate=True)["INFERENCE_PRECISION_HINT"] == "f32"
        assert options("NPU", accurate=True) == {"PERFORMANCE_HINT": "LATENCY"}


class TestAutomatic:
    """The bundles of the tests are small."""

    @pytest.fixture(autouse=True)
    def _any_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino_info, "SMALL_MATRIX", 0)

    def test_it_is_taken(self, tiny_bundle: Path) -> None:
        assert choose_backend(open_bundle(tiny_bundle)).backend == "openvino"

    def test_not_for_a_small_model(self, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino_info, "SMALL_MATRIX", 250_000)
        assert choose_backend(open_bundle(tiny_bundle)).backend == "onnxruntime"

    def test_not_for_a_variant_that_it_refuses(self, tiny_bundle: Path) -> None:
        assert choose_backend(open_bundle(tiny_bundle), variant="primitive-fp32").backend == "onnxruntime"

    def test_not_where_graphs_were_saved_for_this_machine(self, tiny_bundle: Path, tmp_path: Path) -> None:
        bundle = copied(tiny_bundle, tmp_path / "bundle")
        (bundle / "optimized" / "fused-fp32" / "ort-1.32.0-0123456789ab").mkdir(parents=True)
        assert choose_backend(open_bundle(bundle)).backend == "onnxruntime"

    @pytest.mark.parametrize(("version", "faster"), [(None, False), ("2025.4.1", False), ("2026.4.1", True)])
    def test_where_the_release_is_installed(self, tiny_bundle: Path, version: str | None, faster: bool) -> None:
        versions = {"openvino": version}
        assert is_faster(open_bundle(tiny_bundle), None, versions.get) is faster


class TestLoading:
    def test_weights_that_are_links(self, text_bundle: Path, tmp_path: Path) -> None:
        """As in the cache of Hugging Face's hub, where every file is one."""
        bundle = copied(text_bundle, tmp_path / "snapshot")
        (tmp_path / "blobs").mkdir()
        for number, path in enumerate(sorted(bundle.rglob("*.bin"))):
            path.symlink_to(path.rename(tmp_path / "blobs" / str(number)))
        with Session.open(bundle, backend="openvino", variant="fused-fp32", threads=1, allow_links=True) as session:
            found = session.answer(photo(), QUESTION, max_new_tokens=4)
        with Session.open(text_bundle, backend="openvino", variant="fused-fp32", threads=1) as session:
            assert session.answer(photo(), QUESTION, max_new_tokens=4).token_ids == found.token_ids

    @pytest.mark.parametrize("linked", [False, True])
    def test_where_threads_have_no_working_folder(
        self, text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
    ) -> None:
        """As in a container that may not unshare it: the graph lies beside its weights for a moment."""
        bundle = copied(text_bundle, tmp_path / "bundle")
        if linked:
            (bundle / "weights").rename(tmp_path / "weights")
            (bundle / "weights").symlink_to(tmp_path / "weights")
        core, path = openvino_graph.new_core(), bundle / "trunk.fused-fp32.onnx"
        operators = len(openvino_graph.read_onnx(core, path.read_bytes(), bundle).get_ops())

        def refuse(folder: Path, work: object) -> None:
            raise NoFolderOfItsOwn(f"no working folder, and {folder} has to be one for a moment")

        monkeypatch.setattr(openvino_graph, "run_in_folder", refuse)
        files = sorted(tmp_path.rglob("*"))
        assert len(openvino_graph.read_onnx(core, path.read_bytes(), bundle).get_ops()) == operators
        assert sorted(tmp_path.rglob("*")) == files
        monkeypatch.setattr(Path, "write_bytes", fail)
        expected = "no working folder, and .* has to be one for a moment; instead a file is written there for a moment"
        with pytest.raises(RunFailed, match=expected):
            openvino_graph.read_onnx(core, path.read_bytes(), bundle)

    def test_weights_from_a_file_that_is_not_listed(self, text_bundle: Path) -> None:
        bundle = open_bundle(text_bundle)
        info = bundle.variant("fused-fp32").graphs["trunk"]
        graph = GraphInfo(info.name, info.file, info.inputs, info.outputs, ())
        with pytest.raises(BadBundle, match=r"takes weights from 'weights/trunk.fp32.bin', which is not listed"):
            open_backend("openvino", 1).load(graph, bundle.file(info.file))

    def test_a_graph_of_another_manifest(self, text_bundle: Path) -> None:
        bundle = open_bundle(text_bundle)
        trunk, tail = (bundle.variant("fused-fp32").graphs[name] for name in ("trunk", "tail"))
        graph = GraphInfo("tail", tail.file, tail.inputs, tail.outputs, trunk.weights)
        with pytest.raises(BadBundle, match="and the manifest differ in inputs: "):
            open_backend("openvino", 1).load(graph, bundle.file(trunk.file))


class TestRunning:
    @pytest.mark.parametrize("start", [-1, 62, 100])
    def test_rows_outside_of_the_caches(
        self, libraries: tuple[Backend, Backend], text_bundle: Path, start: int
    ) -> None:
        runner = loaded(libraries[1], open_bundle(text_bundle), "trunk")
        feeds = feeds_of(runner, 0, 3, 1, 64)
        feeds["write_index"][:] = start
        with pytest.raises(BadBundle, match=rf"3 rows at {start} are outside of caches of 64 rows"):
            run_on_arrays(libraries[1], runner, feeds)

    def test_a_cancelled_run(self, text_bundle: Path) -> None:
        backend = open_backend("openvino", 1)
        runner = loaded(backend, open_bundle(text_bundle), "trunk")
        feeds = feeds_of(runner, 0, 3, 1, 64)
        backend.cancellation.cancel()
        with pytest.raises(Cancelled, match="the trunk graph was cancelled before it finished; ask again"):
            run_on_arrays(backend, runner, feeds)
        backend.cancellation.reset()
        assert np.isfinite(run_on_arrays(backend, runner, feeds)["tap"]).all()

    def test_caches_stay_where_they_are_through_an_answer(
        self, text_bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And the request is given tensors only when another step had used it."""
        placed: list[str] = []
        original = openvino.InferRequest.set_tensor

        def set_tensor(request: Any, name: str, tensor: Any) -> None:
            placed.append(name)
            original(request, name, tensor)

        monkeypatch.setattr(openvino.InferRequest, "set_tensor", set_tensor)
        with Session.open(text_bundle, backend="openvino", variant="fused-fp32", threads=1) as session:
            session.answer(photo(), QUESTION, roi=None, max_new_tokens=12)
            caches = session._decoder.slots.caches
            assert len({id(buffer) for name in caches for buffer in caches[name].buffers.values()}) > 1
        assert placed.count("key_cache.0") == 2  # for the prefill, and for eleven steps


def test_caches_are_held_as_the_graph_declares_them(text_checkpoint: Path, tmp_path: Path) -> None:
    """In fp16 where the graph computes in it, although everything else is computed in fp32."""
    export_bundle(text_checkpoint, tmp_path / "bundle", ExportOptions("fp16", "fused"))
    bundle = open_bundle(tmp_path / "bundle")
    (variant,) = (each for each in bundle.manifest.variants.values() if each.computes_in_half)
    backend, half = open_backend("onnxruntime", 1), open_backend("openvino", 1)
    for name in ("trunk", "tail"):
        info = variant.graphs[name]
        runner = half.load(info, bundle.file(info.file))
        assert {tensor.dtype for tensor in runner.inputs.values() if tensor.is_cache} == {"float16"}
        reference = backend.load(info, bundle.file(info.file))
        feeds = feeds_of(reference, 33, 50, 1, 128)
        expected, found = run_on_arrays(backend, reference, feeds), run_on_arrays(half, runner, feeds)
        for output, values in expected.items():
            difference = np.abs(values.astype(np.float32) - found[output]).max()
            assert difference <= PARITY_FP16_ABS, f"{output} of {name} differs by {difference:.2e}"


class TestCodedCaches:
    def test_answers_stay_close_and_prefixes_are_reused(self, text_bundle: Path) -> None:
        found = []
        for first, kv_cache in ((False, None), (False, "int8"), (True, "int8")):
            with Session.open(
                text_bundle,
                backend="openvino",
                variant="fused-fp32",
                threads=1,
                kv_cache=kv_cache,  # type: ignore[arg-type]
            ) as session:
                caches = session._decoder.slots.caches
                if first:
                    session.answer(photo(), "Another question?", roi=None, max_new_tokens=3)
                answer = session.answer(photo(), QUESTION, roi=None, max_new_tokens=4, trace=True)
                assert (answer.tokens.cached > 0) == first
                assert answer.trace is not None
                found.append(answer.trace.step_logits)
                buffers = [buffer for name in ("trunk", "tail") for buffer in caches[name].buffers.values()]
                assert {buffer.dtype.name for buffer in buffers} == {"uint8" if kv_cache else "float32"}
        floats, fresh, reused = found
        first_token = np.abs(floats[0] - fresh[0]).max()  # tokens of random weights part soon
        assert 0 < first_token <= INT8_ACTIVATIONS_SHARE * np.abs(floats[0]).max()
        assert np.abs(fresh - reused).max() <= PARITY_ABS

    def test_another_library_does_not_have_them(self, text_bundle: Path) -> None:
        with pytest.raises(BadInput, match="onnxruntime holds caches as the graphs declare them; for 8 bits"):
            Session.open(text_bundle, backend="onnxruntime", kv_cache="int8")


class TestVisionType:
    """The tower in bf16, where the processor has instructions for it."""

    def results(self, text_bundle: Path, graph: str, vision_type: str | None) -> Array:
        backend = info_of("openvino").open(OpenOptions(1, vision_type=vision_type))
        runner = loaded(backend, open_bundle(text_bundle), graph)
        feeds = feeds_of(runner, 0, 40, 1, 64)
        return next(iter(run_on_arrays(backend, runner, feeds).values())).astype(np.float32)

    @pytest.mark.skipif(not BF16_FEATURES & set(read_cpu().features), reason="no instructions for bf16")
    def test_it_is_for_the_tower_alone(self, text_bundle: Path) -> None:
        exact, rounded = (self.results(text_bundle, "vision", kind) for kind in (None, "bf16"))
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert PARITY_ABS < error < BF16_TOWER_SHARE, f"bf16 differs by {error:.1e} of the tower's results"
        without, beside = (self.results(text_bundle, "trunk", kind) for kind in (None, "bf16"))
        assert np.array_equal(without, beside)

    @pytest.mark.parametrize(
        ("device", "cpu", "expected"),
        [
            ("GPU", Cpu("a", ("avx512_bf16",)), "for OpenVINO's device CPU; GPU chooses its own types"),
            (
                "CPU",
                Cpu("Some Chip", ("avx2", "avx512f")),
                "Some Chip has no instructions for it (amx_bf16 or avx512_bf16)",
            ),
        ],
    )
    def test_where_it_is_refused(self, device: str, cpu: Cpu, expected: str) -> None:
        with pytest.raises(BadInput, match=re.escape(expected)):
            openvino_device.OpenVinoDevice(device).require_bf16(cpu)
        for feature in BF16_FEATURES:
            openvino_device.OpenVinoDevice("CPU").require_bf16(Cpu("b", (feature,)))

    def test_with_what_it_is_refused(self, text_bundle: Path) -> None:
        with pytest.raises(BadInput, match="onnxruntime computes the vision tower in the type of its graph"):
            Session.open(text_bundle, backend="onnxruntime", vision_type="bf16")
        with pytest.raises(BadInput, match="vision_type is bf16, and accurate computes in fp32; leave one of them out"):
            Session.open(text_bundle, backend="openvino", vision_type="bf16", accurate=True)


@pytest.mark.parametrize("options", [{}, {"kv_cache": "int8"}], ids=["floats", "coded caches"])
def test_a_large_graph_runs_once_when_it_is_loaded(
    int4_trunk: tuple[GraphInfo, Path], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """So kernels pack its weights before other graphs are in memory; it computes the same behind that."""
    runs = list[str]()
    run = openvino_runner.Inference.run

    def counted(self: Any, request: Any) -> None:
        runs.append("run")
        run(self, request)

    monkeypatch.setattr(openvino_runner.Inference, "run", counted)
    taps = []
    for least, expected in ((10**9, 0), (0, 1)):
        monkeypatch.setattr(openvino_backend, "_LARGE_BYTES", least)
        backend = info_of("openvino").open(OpenOptions(1, **options))
        runner = backend.load(*int4_trunk)
        assert len(runs) == expected
        taps.append(run_on_arrays(backend, runner, feeds_of(runner, 0, 50, 1, 64))["tap"])
        runs.clear()
    before, after = taps
    assert np.array_equal(before, after)


@pytest.fixture(scope="module")
def int4_trunk(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphInfo, Path]:
    folder = tmp_path_factory.mktemp("int4")
    export_bundle(text_checkpoint, folder / "bundle", ExportOptions("int4", "fused"))
    info = open_bundle(folder / "bundle").variant("fused-int4-cpu").graphs["trunk"]
    return info, folder / "bundle" / info.file


class TestActivationBlocks:
    def taps(self, int4_trunk: tuple[GraphInfo, Path], name: str, **options: Any) -> Array:
        backend = info_of(name).open(OpenOptions(1, **options))
        runner = backend.load(*int4_trunk)
        tap: Array = run_on_arrays(backend, runner, feeds_of(runner, 33, 50, 1, 128))["tap"]
        return tap

    def test_they_are_those_of_the_weights_or_as_asked_for(self, int4_trunk: tuple[GraphInfo, Path]) -> None:
        """Accurate runs of both libraries equal each other; others are a little away."""
        reference = self.taps(int4_trunk, "onnxruntime", accurate=True)
        for options in {"accurate": True}, {"activation_block": 0}:
            exact = np.abs(reference - self.taps(int4_trunk, "openvino", **options)).max()
            assert exact <= PARITY_ABS, f"taps differ by {exact:.2e}"
        as_weights, smaller = (self.taps(int4_trunk, "openvino", activation_block=block) for block in (None, 16))
        for rounded in (as_weights, smaller):
            difference = np.abs(reference - rounded).max()
            assert PARITY_ABS < difference <= INT8_ACTIVATIONS_SHARE * np.abs(reference).max()
        assert not np.array_equal(as_weights, smaller)

    def test_they_divide_those_of_the_weights(self, int4_trunk: tuple[GraphInfo, Path]) -> None:
        expected = "blocks of 64 cannot be multiplied with the trunk graph's weights in blocks of 32; ask for a part of"
        with pytest.raises(BadInput, match=expected):
            self.taps(int4_trunk, "openvino", activation_block=64)

    @pytest.mark.parametrize(
        ("backend", "block", "expected"),
        [
            ("openvino", 24, "activation_block is 24; expected 0, or a multiple of 16"),
            ("openvino", "32", "activation_block is '32'; expected an integer or None"),
            ("onnxruntime", 32, "onnxruntime rounds activations in the blocks of the weights; leave their blocks out"),
        ],
    )
    def test_what_is_refused(self, text_bundle: Path, backend: str, block: Any, expected: str) -> None:
        with pytest.raises(BadInput, match=expected):
            Session.open(text_bundle, backend=backend, activation_block=block)

    def test_a_bundle_without_matrices_in_4_bits(self, text_bundle: Path) -> None:
        with pytest.raises(
            BadInput, match="fused-fp32 has no matrices in 4 bits, beside which activations are rounded"
        ):
            Session.open(text_bundle, backend="openvino", activation_block=32)
        with pytest.raises(BadInput, match="and accurate keeps activations as floats; leave one of them out"):
            Session.open(text_bundle, backend="openvino", activation_block=32, accurate=True)
        Session.open(text_bundle, backend="openvino", activation_block=0).close()


def test_the_blocks_of_a_graph(tiny_checkpoint: Path, tmp_path: Path) -> None:
    core = openvino_graph.new_core()
    for precision, block in ("fp32", None), ("int4", 32):
        export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions(precision, "fused"))  # type: ignore[arg-type]
        (path,) = (tmp_path / "bundle").glob(f"trunk.fused-{precision}{'' if block is None else '-cpu'}.onnx")
        assert openvino_graph.code_block(core.read_model(path)) == block
