"""Engines for real, with TensorRT-RTX: what is built, kept, refused, and left behind."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import Bundle, file_digest, open_bundle
from sdrpn.bundle.engine_manifest import EngineManifest, engine_paths, read_engine_manifest
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.engines import (
    BuildOptions,
    BuiltEngine,
    EnginePlan,
    Target,
    build_engines,
    builder,
    plan_engines,
    read_target,
)
from sdrpn.engines import plan as planning
from sdrpn.engines.flavour import CompileRequest, compile_graph
from sdrpn.engines.graph_file import graph_with_context
from sdrpn.engines.layers import is_told
from sdrpn.engines.profiles import profiles_of, shapes_of
from sdrpn.errors import BadBundle, BadInput, MissingDependency, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from tests.engines.recipes import RTX_TARGET, primitive_target, target
from tests.export.calibration import Largest

pytest.importorskip("tensorrt_rtx_bindings")

TRUNK = BuildOptions(graphs=("trunk",))
VISION = BuildOptions(graphs=("vision",))


def build(
    bundle: Path, options: BuildOptions = VISION, recipe: Target | None = None, *, jobs: int = 1
) -> tuple[BuiltEngine, ...]:
    plan = plan_engines(bundle, recipe or read_target(RTX_TARGET), options, jobs=jobs)
    return build_engines(plan, jobs=jobs)


def left_in(bundle: Path) -> list[str]:
    folder = bundle / "engines" / RTX_TARGET
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def built_bundle(wide_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All engines of the fused variant. Not to be written to."""
    path = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(wide_bundle, path)
    build(path, BuildOptions(max_batch=4), jobs=2)
    return path


@pytest.fixture(scope="module")
def tower_bundle(wide_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an engine of the vision tower. Not to be written to."""
    path = tmp_path_factory.mktemp("tower") / "bundle"
    shutil.copytree(wide_bundle, path)
    build(path)
    return path


@pytest.fixture
def kept(tower_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it, for what was built before. `copytree` keeps times, which are part of what is compared."""
    return Path(shutil.copytree(tower_bundle, tmp_path / "kept"))


class TestEngines:
    @pytest.mark.parametrize("graph", ["vision", "trunk", "rpn", "tail"])
    def test_the_manifest_tells_the_truth(self, built_bundle: Path, graph: str) -> None:
        engine, manifest_path, layers = engine_paths(built_bundle, RTX_TARGET, graph)
        manifest, bundle = read_engine_manifest(manifest_path), open_bundle(built_bundle)
        info = bundle.variant("fused-fp16").graphs[graph]
        assert manifest.engine.sha256 == file_digest(engine)
        assert manifest.engine.size_bytes == engine.stat().st_size
        assert manifest.sources.keys() == {info.file, *info.weights}
        assert all(stamp.sha256 == bundle.manifest.files[name].sha256 for name, stamp in manifest.sources.items())
        assert {(t.name, t.dtype) for t in manifest.tensors} == {
            (t.name, t.dtype) for t in (*info.inputs, *info.outputs)
        }
        names = tuple(profile.name for profile in profiles_of(bundle.spec, graph, 256, 4))
        assert manifest.profiles == names
        assert all(len(t.profiles) == (len(names) if t.mode == "input" else 0) for t in manifest.tensors)
        assert (manifest.target, manifest.compute_capabilities) == (RTX_TARGET, ("SM89",))
        assert (manifest.max_context, manifest.max_batch, manifest.kernel_gate) == (256, 4, ())
        assert len(json.loads(layers.read_text())) == manifest.kernels > 0
        assert manifest.build_s > 0
        assert 100e6 < manifest.peak_rss_bytes < 1e9

    @pytest.mark.parametrize(
        ("graph", "dialect"),
        [
            ("trunk", "fused"),
            ("tail", "primitive"),
            pytest.param("trunk", "primitive", marks=pytest.mark.slow),
            pytest.param("tail", "fused", marks=pytest.mark.slow),
        ],
    )
    def test_an_engine_holds_its_weights_once(
        self, tiny_spec: ModelSpec, tmp_path: Path, graph: str, dialect: str
    ) -> None:
        """Decode and prefill multiply with the same: neither transposes them or unpacks packed ones."""
        llm = dataclasses.replace(tiny_spec.llm, width=512, head_dim=128, mlp_width=2048)
        write_random_checkpoint(tmp_path / "checkpoint", dataclasses.replace(tiny_spec, llm=llm), dtype="float16")
        export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ExportOptions("fp16", dialect))  # type: ignore[arg-type]
        (one,) = build(tmp_path / "bundle", BuildOptions(graphs=(graph,)), target(dialect=dialect))
        weights = sum(stamp.size_bytes for name, stamp in one.manifest.sources.items() if name.startswith("weights/"))
        assert weights > 16_000_000
        assert one.manifest.engine.size_bytes < 1.5 * weights  # kernels take some MB
        assert one.manifest.kernel_gate == ()  # nor copies a cache in a decode step

    def test_an_engine_that_holds_weights_twice_says_so(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(builder, "_KERNELS_BYTES", 0)
        (one,) = build(bundle, VISION)  # so small a graph is outweighed by its kernels
        (line,) = one.manifest.kernel_gate
        assert re.fullmatch(r"remark: the engine has \d\.\d MB for .* of weights: some are stored twice", line)
        assert one.manifest.passed_kernel_gate

    def test_the_cache_length_is_written_in(self, built_bundle: Path) -> None:
        manifest = read_engine_manifest(engine_paths(built_bundle, RTX_TARGET, "trunk")[1])
        (cache,) = [t for t in manifest.tensors if t.name == "key_cache.0"]
        assert cache.dims == (-1, 4, 256, 128)
        # Kernels of a decode step are chosen for as many requests as there may be, unless the options say otherwise.
        assert cache.profiles[0] == ((1, 4, 256, 128), (4, 4, 256, 128), (4, 4, 256, 128))

    def test_nothing_else_is_left(self, built_bundle: Path) -> None:
        endings = ("engine", "engine.json", "layers.json")
        assert left_in(built_bundle) == sorted(f"{g}.{e}" for g in ("vision", "trunk", "rpn", "tail") for e in endings)

    @pytest.mark.parametrize(
        "capabilities",
        [
            ("SM120",),
            ("SM86", "SM89", "SM120"),
            *(pytest.param((each,), marks=pytest.mark.slow) for each in ("SM80", "SM86", "SM121")),
        ],
    )
    def test_for_other_gpus(self, bundle: Path, capabilities: tuple[str, ...]) -> None:
        (one,) = build(bundle, TRUNK, target(compute_capabilities=capabilities))
        assert one.manifest.compute_capabilities == capabilities
        assert one.manifest.kernel_gate == ()

    def test_the_other_dialect(self, bundle: Path, tmp_path: Path) -> None:
        (one,) = build(bundle, TRUNK, read_target(str(primitive_target(tmp_path))))
        assert one.manifest.variant == "primitive-fp16"
        assert {t.name for t in one.manifest.tensors if t.mode == "output"} >= {"tap", "key_cache.0_rows"}

    @pytest.mark.parametrize("dialect", ["fused", "primitive"])
    def test_int4_weights_go_straight_into_the_product(self, wide_bundle: Path, bundle: Path, dialect: str) -> None:
        """Four per layer, two layers; the head stays in fp16. Prefills of the dialect `primitive` unpack some first."""
        export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions("int4", dialect))  # type: ignore[arg-type]
        recipe = target(compute_capabilities=("SM80", "SM121"), precisions=("int4",), dialect=dialect)
        (one,) = build(bundle, BuildOptions(graphs=("tail",)), recipe)
        assert one.manifest.precision == "int4"
        assert one.manifest.passed_kernel_gate
        if dialect == "fused":
            assert one.manifest.kernel_gate == ()
        kernels = json.loads(engine_paths(bundle, recipe.name, "tail")[2].read_text())
        constants = [constant["dtype"] for kernel in kernels for constant in kernel["constants"]]
        assert constants.count("Int4") == 2 * len(one.manifest.profiles) * 4

    def test_int8_weights_are_unpacked_at_every_step(self, wide_bundle: Path, bundle: Path) -> None:
        """That is not a copy of a cache, however large they are beside one."""
        export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions("int8"))
        options = BuildOptions(graphs=("tail",), max_context=40)
        (one,) = build(bundle, options, target(precisions=("int8",)))
        (remark,) = one.manifest.kernel_gate
        assert re.match(r"remark: profile decode unpacks 8 INT8 weights at every step", remark)

    @pytest.mark.parametrize(
        ("precision", "capabilities", "listed"),
        [
            ("fp8", ("SM89", "SM120"), "FP8"),
            ("nvfp4", ("SM120", "SM121"), "FP4E2M1"),
            ("bf16", ("SM80", "SM121"), "BFloat16"),
        ],
    )
    def test_small_floats(
        self, wide_bundle: Path, bundle: Path, precision: Any, capabilities: tuple[str, ...], listed: str
    ) -> None:
        """Four products per layer, two layers, two profiles, and the head, which is kept in fp16."""
        calibration = None if precision == "bf16" else Largest()
        options = ExportOptions(precision, calibration=calibration.digest if calibration else None)
        export_bundle(wide_bundle.parent / "checkpoint", bundle, options, calibration=calibration)
        recipe = target(compute_capabilities=capabilities, precisions=(precision,))
        (one,) = build(bundle, BuildOptions(graphs=("tail",)), recipe)
        assert (one.manifest.precision, one.manifest.kernel_gate) == (precision, ())
        kernels = json.loads(engine_paths(bundle, recipe.name, "tail")[2].read_text())
        reads = [kernel for kernel in kernels if listed in {entry["dtype"] for entry in kernel["inputs"]}]
        weights = [constant for kernel in reads for constant in kernel["constants"] if constant["dtype"] == listed]
        matrices = [weight for weight in weights if 2 <= len(weight["dims"]) <= 3 and min(weight["dims"][-2:]) > 1]
        assert len(matrices) >= 2 * 2 * 4
        caches = {tensor.dtype for tensor in one.manifest.tensors if "cache" in tensor.name}
        assert caches == {"bfloat16" if precision == "bf16" else "float16"}

    @pytest.mark.parametrize("graph", ["trunk", "rpn", pytest.param("tail", marks=pytest.mark.slow)])
    def test_several_contexts_in_one_engine(self, bundle: Path, graph: str) -> None:
        """Profiles for each, kernels that attend to no more than their own, and weights once."""
        options = BuildOptions(graphs=(graph,), max_context=256, shorter_contexts=(64,))
        (one,) = build(bundle, options, target(compute_capabilities=("SM89",)))
        (single,) = build(bundle, BuildOptions(graphs=(graph,), dialect="primitive"), target(name="single"))
        assert (one.manifest.variant, one.manifest.contexts, one.manifest.max_context) == (
            "primitive-fp16", (64, 256), 256,
        )  # fmt: skip
        names = ("prefill",) if graph == "rpn" else ("decode", "prefill")
        assert one.manifest.profiles == tuple(f"{name}-{context}" for context in (64, 256) for name in names)
        assert one.manifest.kernel_gate == ()
        caches = [tensor for tensor in one.manifest.tensors if tensor.mode == "input" and "cache" in tensor.name]
        assert {tensor.dims[2] for tensor in caches} == {-1}
        assert {extents[0][2] for extents in caches[0].profiles} == {64, 256}
        weights = sum(stamp.size_bytes for name, stamp in one.manifest.sources.items() if name.startswith("weights/"))
        kernels = [built.manifest.engine.size_bytes - weights for built in (one, single)]
        assert kernels[0] < 2.5 * kernels[1]
        assert build(bundle, options, target(compute_capabilities=("SM89",)))[0].cached

    def test_the_library_refuses_caches_of_several_lengths_that_it_updates_in_place(self, bundle: Path) -> None:
        """Why `build` takes the dialect `primitive` for several contexts."""
        path = bundle / open_bundle(bundle).variant("fused-fp16").graphs["trunk"].file
        graph = graph_with_context(path, 64, 256).content
        request = CompileRequest("tensorrt-rtx", str(path), graph, ("SM89",), {}, None, None)
        with pytest.raises(BadInput, match="KV cache tensor must have a static sequence length dimension"):
            compile_graph(request, lambda *event: None)

    def test_a_log_is_not_kept(self, bundle: Path) -> None:
        """But for the lines about kernels and memory."""
        info = open_bundle(bundle).variant("fused-fp16").graphs["vision"]
        shapes = {
            profile.name: shapes_of(profile, info.inputs)
            for profile in profiles_of(open_bundle(bundle).spec, "vision", 256, 1)
        }
        graph = graph_with_context(bundle / info.file, 256).content
        request = CompileRequest("tensorrt-rtx", str(bundle / info.file), graph, ("SM89",), shapes, None, None)
        built = compile_graph(request, lambda *event: None)
        assert len(built.messages) > 5
        assert all(is_told(text) for text in built.messages)
        assert all("\n" not in text for text in built.messages)

    def test_a_capability_that_the_library_does_not_know(self, bundle: Path) -> None:
        """H100 and B200 are for TensorRT on the device; TensorRT-RTX says what it knows."""
        recipe = target(compute_capabilities=("SM90",))
        with pytest.raises(
            BadInput, match=r"tensorrt-rtx 1\..* does not build for SM90; it supports SM120, SM121, SM75"
        ):
            build(bundle, TRUNK, recipe)

    @pytest.mark.parametrize(("kv_cache", "kind"), [("int8", "Int8"), ("fp8", "FP8")])
    def test_caches_in_8_bits(self, wide_bundle: Path, bundle: Path, kv_cache: str, kind: str) -> None:
        """Codes stay codes but for one layer at a time, whose rows are written out for its attention."""
        options = ExportOptions("fp16", "primitive", kv_cache=kv_cache)
        export_bundle(wide_bundle.parent / "checkpoint", bundle, options)
        recipe = target(compute_capabilities=("SM89",))
        (one,) = build(bundle, BuildOptions(graphs=("trunk",), kv_cache=kv_cache), recipe)
        assert one.manifest.variant == f"primitive-fp16-kv-{kv_cache}"
        assert one.manifest.passed_kernel_gate
        (remark,) = one.manifest.kernel_gate
        assert remark == "remark: profile decode unpacks the rows of 4 caches in 8 bits before attention"
        kernels = json.loads(engine_paths(bundle, recipe.name, "trunk")[2].read_text())
        read = {(t["name"], t["dtype"]) for kernel in kernels for t in kernel["inputs"]}
        assert {(f"{part}_cache.{layer}", kind) for part in ("key", "value") for layer in (0, 1)} <= read

    def test_tensorrt_does_not_update_caches_in_8_bits(self, wide_bundle: Path, bundle: Path) -> None:
        """Why `build` takes the dialect `primitive` for them."""
        manifest = export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions("fp16", kv_cache="int8"))
        path = bundle / manifest.variants["fused-fp16-kv-int8"].graphs["trunk"].file
        graph = graph_with_context(path, 256).content
        request = CompileRequest("tensorrt-rtx", str(path), graph, ("SM89",), {}, None, None)
        with pytest.raises(BadInput, match="cache has type Int8 but must have type Float, Half, or BFloat16"):
            compile_graph(request, lambda *event: None)

    def test_an_export_that_adds_a_variant_keeps_engines(self, wide_bundle: Path, kept: Path) -> None:
        export_bundle(wide_bundle.parent / "checkpoint", kept, ExportOptions("fp32"))
        (again,) = build(kept)
        assert again.cached


class TestCache:
    def test_the_second_build_is_none(self, bundle: Path) -> None:
        (first,), (second,) = build(bundle), build(bundle)
        assert (first.cached, second.cached) == (False, True)
        assert first.manifest == second.manifest

    def test_a_hit_hashes_and_starts_nothing(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """However large the files are: their sizes and times are enough."""

        def refuse(*arguments: object, **named: object) -> None:
            raise AssertionError("a hit must cost nothing")

        monkeypatch.setattr(planning, "file_digest", refuse)
        monkeypatch.setattr(builder, "file_digest", refuse)
        monkeypatch.setattr(builder, "run_jobs", refuse)
        monkeypatch.setattr(Bundle, "verify", refuse)
        assert build(kept)[0].cached
        with pytest.raises(AssertionError, match="a hit must cost nothing"):
            plan_engines(kept, read_target(RTX_TARGET), VISION, verify=True)

    @pytest.mark.parametrize(
        "options",
        [
            dataclasses.replace(VISION, opt_level=1),
            dataclasses.replace(VISION, max_context=128),
            dataclasses.replace(VISION, max_batch=5),
            dataclasses.replace(VISION, workspace_mb=512),
            dataclasses.replace(VISION, weight_streaming=True),
        ],
    )
    def test_every_option_counts(self, kept: Path, options: BuildOptions) -> None:
        """What a plan does not find is built: see the tests below."""
        (found,) = plan_engines(kept, read_target(RTX_TARGET), VISION).engines
        (again,) = plan_engines(kept, read_target(RTX_TARGET), options).engines
        assert found.cached is not None
        assert again.cached is None

    def test_an_engine_of_other_options_takes_its_place(self, kept: Path) -> None:
        (again,) = build(kept, dataclasses.replace(VISION, max_batch=5))
        assert (again.cached, again.manifest.max_batch) == (False, 5)
        assert build(kept, dataclasses.replace(VISION, max_batch=5))[0].cached

    def test_a_changed_engine_is_built_again(self, kept: Path) -> None:
        path = engine_paths(kept, RTX_TARGET, "vision")[0]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        (again,) = build(kept)
        assert not again.cached
        assert again.manifest.engine.sha256 == file_digest(path)

    def test_a_copied_bundle_still_counts(self, kept: Path, tmp_path: Path) -> None:
        shutil.copytree(kept, tmp_path / "copy", copy_function=shutil.copyfile)
        assert build(tmp_path / "copy")[0].cached

    def test_verify_sees_what_a_forged_time_hides(self, kept: Path) -> None:
        path, manifest_path, _ = engine_paths(kept, RTX_TARGET, "vision")
        modified_ns = read_engine_manifest(manifest_path).engine.modified_ns
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(modified_ns, modified_ns))
        recipe = read_target(RTX_TARGET)
        assert plan_engines(kept, recipe, VISION).engines[0].cached is not None
        assert plan_engines(kept, recipe, VISION, verify=True).engines[0].cached is None

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"format_version": 7}', '{"format_version": 1}'])
    def test_a_manifest_that_cannot_be_read_is_refused(self, kept: Path, damage: str) -> None:
        path = engine_paths(kept, RTX_TARGET, "vision")[1]
        path.write_text(damage)
        with pytest.raises(BadBundle, match="sdrpn build BUNDLE"):
            read_engine_manifest(path)
        assert plan_engines(kept, read_target(RTX_TARGET), VISION).engines[0].cached is None

    def test_and_replaced(self, kept: Path) -> None:
        engine, path, _ = engine_paths(kept, RTX_TARGET, "vision")
        path.write_text('{"format_version": 1}')
        assert not build(kept)[0].cached
        assert isinstance(read_engine_manifest(path), EngineManifest)
        assert engine.exists()


class TestRefusals:
    def test_a_variant_that_is_not_there(self, tiny_bundle: Path) -> None:
        with pytest.raises(BadInput, match=r"needs variant fused-fp8 or .*; .* has fused-fp32, primitive-fp32. Add it"):
            plan_engines(tiny_bundle, read_target(RTX_TARGET), VISION)

    def test_advice_takes_a_precision_that_the_bundle_has(self, wide_bundle: Path, bundle: Path) -> None:
        """In another dialect; its weights are there already."""
        export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions("int4"))
        recipe = target(dialect="primitive", precisions=("bf16", "int4"))
        with pytest.raises(BadInput, match=r"Add it: .* --dialect primitive --precision int4$"):
            plan_engines(bundle, recipe, VISION)

    def test_a_library_that_is_not_there(self, wide_bundle: Path) -> None:
        with pytest.raises(MissingDependency, match=r"tensorrt is not installed here; it comes with JetPack"):
            plan_engines(wide_bundle, read_target("jetson-agx-orin-jp62"), VISION)

    def test_a_library_that_is_too_old(self, wide_bundle: Path) -> None:
        with pytest.raises(BadInput, match=r"needs tensorrt-rtx >=9, this machine has 1\."):
            plan_engines(wide_bundle, target(tensorrt_min="9"), VISION)

    def test_a_gpu_that_the_library_does_not_know(self, bundle: Path) -> None:
        with pytest.raises(BadInput, match=r"does not build for SM99; it supports SM120, "):
            build(bundle, VISION, target(compute_capabilities=("SM99",)))

    def test_too_little_scratch_memory(self, bundle: Path) -> None:
        with pytest.raises(RunFailed, match=r"built no engine from .*a workspace of 1 MB may be too small"):
            build(bundle, dataclasses.replace(TRUNK, workspace_mb=1))
        assert left_in(bundle) == []

    def test_a_changed_bundle(self, bundle: Path) -> None:
        path = bundle / "vision.fused-fp16.onnx"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with pytest.raises(BadBundle, match="was changed"):
            build(bundle)

    def test_a_second_build_at_once(self, bundle: Path) -> None:
        (bundle / "engines").mkdir()
        with (bundle / "engines" / ".lock").open("w") as stream:
            stream.write("4711")
            stream.flush()
            fcntl.flock(stream, fcntl.LOCK_EX)
            with pytest.raises(RunFailed, match=r"another build \(process 4711\) is using"):
                build(bundle)
        assert not build(bundle)[0].cached

    def test_a_file_system_without_locks(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(stream: object, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(RunFailed, match="engines is on a file system without locks; build in a copy"):
            build(bundle)

    def test_a_full_disk(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(bundle)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        with pytest.raises(RunFailed, match=r"1\.0 kB free: .* are missing; .*build fewer graphs"):
            build(bundle)

    def test_too_little_memory(self, bundle: Path) -> None:
        plan = plan_engines(bundle, target(memory_gb=0.001), VISION)
        with pytest.raises(RunFailed, match=r"My GPU has 1\.0 MB"):
            build_engines(plan)
        assert build_engines(plan, check_memory=False)[0].path.exists()

    def test_memory_of_what_is_built_already_is_not_asked_for(self, bundle: Path, kept: Path) -> None:
        plan = plan_engines(bundle, read_target(RTX_TARGET), BuildOptions(graphs=("vision", "rpn")))
        again = plan_engines(kept, read_target(RTX_TARGET), BuildOptions(graphs=("vision", "rpn")))
        assert (tuple(plan.estimate.host_peaks), tuple(again.estimate.host_peaks)) == (("vision", "rpn"), ("rpn",))

    def test_a_read_only_bundle(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> None:
            raise BadInput(
                f"{path} cannot be written (Read-only file system); make that place writable, or name another"
            )

        monkeypatch.setattr("sdrpn.engines.builder.require_writable_file", refuse)
        with pytest.raises(BadInput, match="Read-only file system"):
            build(bundle)
        assert not (bundle / "engines").exists()

    def test_an_operator_that_is_not_known(self) -> None:
        import onnx
        from onnx import TensorProto, helper

        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Mystery", ["x"], ["y"], name="n1")], "g", value[:1], value[1:])
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        request = CompileRequest("tensorrt-rtx", "g.onnx", model.SerializeToString(), ("SM86",), {}, None, None)
        with pytest.raises(BadInput, match=r"cannot read g\.onnx: Mystery n1: .*; export the other dialect"):
            compile_graph(request, lambda *event: None)


class TestKernelGate:
    @pytest.fixture
    def slow_plan(self, bundle: Path) -> Callable[[BuildOptions], EnginePlan]:
        """A decode profile for a range of rows: TensorRT-RTX 1.7 copies caches then."""

        def plan(options: BuildOptions) -> EnginePlan:
            good = plan_engines(bundle, read_target(RTX_TARGET), options)
            (one,) = good.engines
            decode, prefill = one.profiles
            ranged = dataclasses.replace(decode, extents={**decode.extents, "sequence": (1, 1, 4)})
            return dataclasses.replace(good, engines=(dataclasses.replace(one, profiles=(ranged, prefill)),))

        return plan

    def test_an_engine_that_copies_caches_is_not_kept(self, slow_plan: Callable[[BuildOptions], EnginePlan]) -> None:
        with pytest.raises(RunFailed, match=r"trunk would be slow: .*as large as a whole cache.*or keep such engines"):
            build_engines(slow_plan(TRUNK))
        (kept,) = build_engines(slow_plan(dataclasses.replace(TRUNK, kernel_gate=False)))
        assert any("as large as a whole cache" in fault for fault in kept.manifest.kernel_gate)
        # With the gate what was kept is not a cache hit.
        assert slow_plan(TRUNK).engines[0].cached is None
        assert slow_plan(dataclasses.replace(TRUNK, kernel_gate=False)).engines[0].cached is not None


def test_a_build_that_was_killed_leaves_nothing_that_counts(kept: Path) -> None:
    """As after signal 9: a partial file, and an engine whose manifest was removed already."""
    engine, manifest, _ = engine_paths(kept, RTX_TARGET, "vision")
    manifest.unlink()
    (manifest.parent / ".vision.engine.0123.partial").write_bytes(b"half")
    (again,) = build(kept)
    assert not again.cached
    assert left_in(kept) == ["vision.engine", "vision.engine.json", "vision.layers.json"]
    assert again.path == engine
