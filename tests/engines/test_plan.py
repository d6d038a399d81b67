"""A plan: what is chosen, what is refused before anything is built, and what can be said without the library."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.engines import BuildOptions, build_engines, graph_file, plan, plan_engines, read_target, trtexec_script
from sdrpn.engines.flavour import CompileRequest, compile_graph
from sdrpn.engines.options import require_possible
from sdrpn.engines.profiles import Shapes, shapes_of
from sdrpn.errors import BadInput, MissingDependency, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from tests.engines.recipes import RTX_TARGET, target

TRUNK = BuildOptions(graphs=("trunk",))


class TestPrecision:
    def test_the_best_that_the_bundle_has(self, wide_bundle: Path) -> None:
        assert plan_engines(wide_bundle, read_target(RTX_TARGET), TRUNK).variant.name == "fused-fp16"

    def test_another_one(self, wide_bundle: Path, bundle: Path) -> None:
        export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions("int4"))
        recipe = target(precisions=("int4", "fp16"))
        assert plan_engines(bundle, recipe, TRUNK).variant.name == "fused-int4"
        assert plan_engines(bundle, recipe, BuildOptions(precision="fp16")).variant.name == "fused-fp16"

    def test_what_the_target_does_not_have(self, wide_bundle: Path) -> None:
        with pytest.raises(BadInput, match="target mine has no precision int4; expected one of fp16"):
            plan_engines(wide_bundle, target(), BuildOptions(precision="int4"))

    def test_what_the_bundle_does_not_have(self, wide_bundle: Path) -> None:
        with pytest.raises(BadInput, match=r"needs variant fused-int4; .*--dialect fused --precision int4"):
            plan_engines(wide_bundle, target(precisions=("int4", "fp16")), BuildOptions(precision="int4"))


class TestCaches:
    """TensorRT updates caches in 16 and 32 bits only: with 8, rows are put in from outside."""

    def test_int8_is_in_the_dialect_primitive_whatever_the_targets_is(self, wide_bundle: Path, bundle: Path) -> None:
        export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions("fp16", "primitive", kv_cache="int8"))
        whole = plan_engines(bundle, target(), BuildOptions())
        coded = plan_engines(bundle, target(), BuildOptions(kv_cache="int8"))
        assert (whole.variant.name, coded.variant.name) == ("fused-fp16", "primitive-fp16-kv-int8")
        assert coded.estimate.device.caches_bytes < 0.7 * whole.estimate.device.caches_bytes

    def test_a_variant_that_is_not_there(self, wide_bundle: Path) -> None:
        advice = r"needs variant primitive-fp16-kv-int8; .*--dialect primitive --precision fp16 --kv-cache int8"
        with pytest.raises(BadInput, match=advice):
            plan_engines(wide_bundle, target(), BuildOptions(kv_cache="int8"))

    def test_fp8_needs_a_gpu_that_has_it(self, wide_bundle: Path) -> None:
        with pytest.raises(BadInput, match=r"target mine has no fp8: SM86, and SM89 is the first; use int8"):
            plan_engines(wide_bundle, target(), BuildOptions(kv_cache="fp8"))


@pytest.mark.parametrize(
    ("options", "timing_cache", "message"),
    [
        (
            {},
            True,
            "a timing cache does not apply to tensorrt-rtx, which times no kernels during a build; leave it out",
        ),
        (
            {"version_compatible": True},
            False,
            "run only with the release that built them; leave version compatibility out",
        ),
        (
            {"hardware_compat": True},
            False,
            "no hardware compatibility; list all compute_capabilities in the target, as rtx",
        ),
        ({"refit": True}, False, "builds for refitting on a machine with a GPU only, and this one has none; leave it"),
    ],
)
def test_what_tensorrt_rtx_cannot_do(
    wide_bundle: Path,
    options: dict[str, Any],
    timing_cache: bool,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "read_gpus", lambda: ())
    cache = tmp_path / "cache" if timing_cache else None
    with pytest.raises(BadInput, match=message):
        plan_engines(wide_bundle, target(), BuildOptions(**options), timing_cache=cache)


def test_what_jetpack_cannot_do() -> None:
    orin, options = read_target("jetson-agx-orin-jp72"), BuildOptions(hardware_compat=True)
    require_possible(options, orin, timing_cache=True, gpu=True, jetson=False)
    with pytest.raises(
        BadInput, match="JetPack's TensorRT has no hardware compatibility; leave it out and build on each"
    ):
        require_possible(options, orin, timing_cache=True, gpu=True, jetson=True)


def test_a_level_that_the_library_does_not_take() -> None:
    """TensorRT-RTX has the setting, and ignores it: what it says afterwards counts."""
    pytest.importorskip("tensorrt_rtx_bindings")
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    content = model.SerializeToString()
    request = CompileRequest("tensorrt-rtx", "g", content, ("SM86",), {}, None, None, hardware_compat=True)
    with pytest.raises(BadInput, match=r"does not support hardware compatibility: its level stays NONE; leave it out"):
        compile_graph(request, lambda *event: None)


def test_a_profile_that_the_library_does_not_take() -> None:
    """It says so by a number alone."""
    pytest.importorskip("tensorrt_rtx_bindings")
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    profiles: dict[str, Shapes] = {"decode": {"x": ((3,), (2,), (1,))}}
    request = CompileRequest("tensorrt-rtx", "g", model.SerializeToString(), ("SM86",), profiles, None, None)
    with pytest.raises(RunFailed, match=r"rejected profile decode .* \{'x': \(\(3,\), \(2,\), \(1,\)\)\}"):
        compile_graph(request, lambda *event: None)


def test_the_gate_needs_the_list_of_kernels() -> None:
    with pytest.raises(BadInput, match=r"with verbosity none the library .* turn the gate off"):
        BuildOptions(verbosity="none")
    with pytest.raises(BadInput, match="verbosity is 'loud'; expected one of detailed, names, none"):
        BuildOptions(verbosity="loud")


class TestWithoutTheLibrary:
    """What can be checked for a device that is elsewhere."""

    def test_the_estimate_is_made(self, wide_bundle: Path) -> None:
        orin = read_target("jetson-agx-orin-jp62")
        found = plan_engines(wide_bundle, orin, BuildOptions(), only_look=True)
        assert (found.variant.name, found.library_version) == ("primitive-fp16", None)
        assert found.obstacle is not None
        assert found.obstacle.startswith("tensorrt is not installed here; it comes with JetPack")
        assert 0 < found.estimate.device_bytes < orin.memory_bytes

    def test_it_is_an_error_where_something_is_to_be_built(self, wide_bundle: Path) -> None:
        orin = read_target("jetson-agx-orin-jp62")
        with pytest.raises(MissingDependency, match="tensorrt is not installed here"):
            plan_engines(wide_bundle, orin, BuildOptions())
        with pytest.raises(BadInput, match="tensorrt is not installed here"):
            build_engines(plan_engines(wide_bundle, orin, BuildOptions(), only_look=True))


class TestTrtexec:
    def test_for_tensorrt(self, wide_bundle: Path) -> None:
        options = BuildOptions(
            ("trunk",), opt_level=4, workspace_mb=512, weight_streaming=True, version_compatible=True
        )
        orin = read_target("jetson-agx-orin-jp72")
        planned = plan_engines(wide_bundle, orin, options, timing_cache=Path("/my/timing"), only_look=True)
        comment, copy, command = trtexec_script(planned).splitlines()
        assert comment == "# trunk: decode, prefill"
        assert "-m sdrpn.engines.graph_file" in copy
        words = shlex.split(command)
        assert words[0] == "trtexec"
        assert words[1] == f"--onnx={wide_bundle}/trunk.fused-fp16.256.onnx"
        assert {
            *("--stronglyTyped", "--profilingVerbosity=detailed", "--builderOptimizationLevel=4"),
            *("--memPoolSize=workspace:512M", "--timingCacheFile=/my/timing", "--allowWeightStreaming"),
            *("--versionCompatible", "--profile=0", "--profile=1", "--skipInference"),
        } <= set(words)
        decode, prefill = (word for word in words if word.startswith("--maxShapes="))
        assert "inputs_embeds:2x1x256," in decode
        assert "inputs_embeds:1x256x256," in prefill
        assert "key_cache.0:2x4x256x128" in decode

    def test_for_tensorrt_rtx(self, wide_bundle: Path) -> None:
        options = BuildOptions(("vision",))
        recipe = target(compute_capabilities=("SM86", "SM120"))
        command = trtexec_script(plan_engines(wide_bundle, recipe, options, only_look=True)).splitlines()[-1]
        assert command.startswith("tensorrt_rtx --onnx=")
        assert "--computeCapabilities=86,120" in command
        assert "--profile=" not in command
        assert "--stronglyTyped" not in command

    @pytest.mark.parametrize("dialect", ["fused", "primitive"])
    def test_the_copy_computes_what_the_graph_computes(self, bundle: Path, dialect: str) -> None:
        """To the last bit: what is known of the bundle's graph holds for what was compiled."""
        info = open_bundle(bundle).variant(f"{dialect}-fp16").graphs["trunk"]
        graph = bundle / info.file
        copy = graph.with_suffix(".256.onnx")
        assert graph_file.main([str(graph), "256", str(copy)]) == 0
        extents, rng = {"batch": 1, "sequence": 3, "cache_length": 256}, np.random.default_rng(0)
        feeds: dict[str, Any] = {"row_index": np.arange(5, 8)[None], "write_index": np.array([5])}
        for tensor in info.inputs:
            shape = [extents[dim] if isinstance(dim, str) else dim for dim in tensor.dims]
            feeds.setdefault(tensor.name, rng.standard_normal(shape).astype(tensor.dtype))
        found = [ort.InferenceSession(path).run(None, feeds) for path in (graph, copy)]
        assert len(found[0]) == len(info.outputs)
        for first, other in zip(*found, strict=True):
            np.testing.assert_array_equal(first, other)

    def test_the_copy_is_what_a_build_compiles(self, bundle: Path) -> None:
        pytest.importorskip("tensorrt_rtx_bindings")
        planned = plan_engines(bundle, target(), TRUNK)
        make = trtexec_script(planned).splitlines()[1]
        subprocess.run(shlex.split(make), check=True)
        (copy,) = bundle.glob("trunk.*.256.onnx")
        (one,) = planned.engines
        shapes = {profile.name: shapes_of(profile, one.graph.inputs) for profile in one.profiles}
        request = CompileRequest("tensorrt-rtx", str(copy), copy.read_bytes(), ("SM86",), shapes, None, None)
        built = compile_graph(request, lambda *event: None)
        assert len(memoryview(built.plan)) > 1_000_000
        assert re.search(r"_gemv_mha_v1", "".join(built.messages))
