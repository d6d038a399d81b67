"""Targets of plain TensorRT: the same way through the builder, with a library that stands in for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.engine_manifest import TimingCacheUse, engine_paths, read_engine_manifest
from sdrpn.engines import BuildOptions, BuiltEngine, Target, build_engines, plan, plan_engines, read_target
from sdrpn.errors import BadInput, EngineNotBuilt, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host.cuda_devices import CudaDevice
from sdrpn.host.machine import Gpu, Jetson
from tests.engines.recipes import target

pytest.importorskip("tensorrt_rtx_bindings")

VISION = BuildOptions(graphs=("vision",))
Tensorrt = Callable[..., Path]


def recipe(**changes: object) -> Target:
    return target(**{"flavour": "tensorrt", "built": "device", "tensorrt_min": "10.15", **changes})


def build(
    bundle: Path, options: BuildOptions = VISION, timing_cache: Path | None = None, jobs: int = 1
) -> tuple[BuiltEngine, ...]:
    return build_engines(plan_engines(bundle, recipe(), options, jobs=jobs, timing_cache=timing_cache), jobs=jobs)


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tensorrt]:
    """Installs the stand-in, here and for child processes; gives the folder that it writes its notes into."""

    def install(**settings: object) -> Path:
        folder = tmp_path / "site"
        folder.mkdir()
        for name, source in (("tensorrt.py", "plain_tensorrt.py"), ("tensorrt_listing.py", "listing.py")):
            (folder / name).write_text(Path(__file__).with_name(source).read_text())
        (folder / "settings.json").write_text(json.dumps(settings))
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        return folder

    yield install
    sys.modules.pop("tensorrt", None)


def test_the_manifest_says_what_was_built(bundle: Path, tensorrt: Tensorrt) -> None:
    tensorrt()
    (one,) = build(bundle, BuildOptions(graphs=("trunk",)))
    found = one.manifest
    assert (found.flavour, found.library_version) == ("tensorrt", "10.16.1.11")
    assert (found.hardware_compatibility, found.timing_cache) == ("NONE", None)
    assert (found.decomposed_attention, found.fallback) == (False, None)
    assert found.activation_bytes is not None
    assert build(bundle, BuildOptions(graphs=("trunk",)))[0].cached


@pytest.mark.parametrize("version", ["10.13.3.9", "10.15.0"])
def test_thor_refuses_releases_that_compute_wrong_numbers(bundle: Path, tensorrt: Tensorrt, version: str) -> None:
    tensorrt(version=version)
    thor = read_target("jetson-thor")
    with pytest.raises(
        BadInput, match=rf"jetson-thor needs tensorrt >=10.16, this machine has {version}; .*build anyway"
    ):
        plan_engines(bundle, thor, VISION)
    (one,) = build_engines(plan_engines(bundle, thor, VISION, any_release=True))
    assert one.manifest.library_version == version


def test_a_machine_without_a_driver(bundle: Path, tensorrt: Tensorrt) -> None:
    tensorrt(driverless=True)
    with pytest.raises(
        RunFailed, match=r"^tensorrt cannot start: CUDA initialization failure with error: 35; sdrpn do"
    ):
        build(bundle)
    assert list((bundle / "engines" / "mine").iterdir()) == []


def test_another_gpu_is_refused(bundle: Path, tensorrt: Tensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt()
    monkeypatch.setattr(plan, "read_gpus", lambda: (Gpu("NVIDIA L4", 24 << 30, "8.9", "570.1"),))
    with pytest.raises(BadInput, match=r"mine is for SM86; this machine has NVIDIA L4 \(SM89\): build on My GPU"):
        plan_engines(bundle, recipe(), VISION)
    looked = plan_engines(bundle, recipe(), VISION, only_look=True)
    assert looked.obstacle is not None
    with pytest.raises(BadInput, match="build on My GPU"):
        build_engines(looked)


def test_gpu_and_driver_are_part_of_the_key(bundle: Path, tensorrt: Tensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt()
    keys = set()
    for name, driver, cuda in (
        ("A10", "570.1", 12080),
        ("A10", "580.2", 12080),
        ("A10", "580.2", 13000),
        ("A40", "580.2", 13000),  # of the same capability
    ):
        gpu = Gpu(name, 24 << 30, "8.6", driver)
        monkeypatch.setattr(plan, "read_gpus", lambda gpu=gpu: (gpu,))
        monkeypatch.setattr(plan, "read_cuda_driver", lambda cuda=cuda: cuda)
        found = plan_engines(bundle, recipe(), VISION)
        keys.add(found.engines[0].key)
        assert (found.gpu, found.driver, found.cuda) == (name, driver, cuda)
    assert len(keys) == 4


def test_a_jetson_is_its_own_gpu(bundle: Path, tensorrt: Tensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi may not be there."""
    tensorrt()
    monkeypatch.setattr(plan, "read_gpus", lambda: ())
    monkeypatch.setattr(plan, "read_jetson", lambda: Jetson("Jetson AGX Orin", "39.2", "7"))
    assert plan_engines(bundle, recipe(), VISION).gpu == "Jetson AGX Orin"


def test_options_reach_the_library(bundle: Path, tensorrt: Tensorrt) -> None:
    notes = tensorrt()
    options = BuildOptions(
        graphs=("vision",), weight_streaming=True, hardware_compat=True, version_compatible=True, refit=True
    )
    (one,) = build(bundle, options)
    assert json.loads((notes / "flags.json").read_text()) == ["WEIGHT_STREAMING", "VERSION_COMPATIBLE", "REFIT"]
    assert one.manifest.hardware_compatibility == "AMPERE_PLUS"
    assert (one.manifest.version_compatible, one.manifest.refit, one.manifest.weight_streaming) == (True, True, True)


class TestListing:
    """TensorRT's has no constants: an engine is neither refused for what the gate cannot see there, nor passed."""

    UNJUDGED = "not judged: the listing has no constants, so it does not show which weights a kernel multiplies with"

    @pytest.mark.parametrize("precision", ["fp16", "int4"])
    def test_an_engine_is_kept_and_is_not_passed(
        self, wide_bundle: Path, bundle: Path, tensorrt: Tensorrt, precision: Any
    ) -> None:
        """The gate once read such a listing as one of kernels without weights, and threw away every INT4 engine."""
        tensorrt()
        export_bundle(wide_bundle.parent / "checkpoint", bundle, ExportOptions(precision))
        plan = plan_engines(bundle, recipe(precisions=(precision,)), BuildOptions(graphs=("tail",)))
        (one,) = build_engines(plan)
        assert one.manifest.kernel_gate == (self.UNJUDGED,)
        assert (one.manifest.kernel_verdict, one.manifest.passed_kernel_gate) == ("unjudged", False)
        assert one.manifest.kernels_text == f"{one.manifest.kernels}, not judged"
        kernels = json.loads(engine_paths(bundle, "mine", "tail")[2].read_text())
        assert all(kernel["outputs"] for kernel in kernels if kernel["kind"] == "kgen")
        assert any("MatMul" in node for kernel in kernels for node in kernel["onnx_nodes"])
        assert not any(kernel["constants"] for kernel in kernels)
        assert build_engines(plan_engines(bundle, recipe(precisions=(precision,)), BuildOptions(graphs=("tail",))))[
            0
        ].cached

    def test_what_looks_like_a_fault_is_a_remark(
        self, bundle: Path, tensorrt: Tensorrt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tensorrt()
        monkeypatch.setattr("sdrpn.bundle.graphs.Graph.attentions", lambda graph, spec: 7)
        (one,) = build(bundle)
        assert one.manifest.kernel_gate == (
            self.UNJUDGED,
            "remark: profile images has 2 fused attention kernels for 7 layers",
        )
        assert one.manifest.kernels_text == f"{one.manifest.kernels}, not judged with 1 remark"


class TestNoKernelForAttention:
    """TensorRT has none in some shapes on some GPUs: the second and third try, and that the manifests say so."""

    OPTIONS = BuildOptions(graphs=("trunk",))

    @pytest.mark.parametrize("lacks", ["whole", "crash"])
    def test_it_is_built_from_its_parts(self, bundle: Path, tensorrt: Tensorrt, lacks: str) -> None:
        tensorrt(no_attention=lacks)
        (one,) = build(bundle, self.OPTIONS)
        assert (one.manifest.variant, one.manifest.decomposed_attention) == ("fused-fp16", True)
        assert one.manifest.fallback is None
        assert one.manifest.build_notes == ("attention was decomposed: the library had no fused kernel",)
        assert build(bundle, self.OPTIONS)[0].cached

    def test_or_the_dialect_primitive_is(self, bundle: Path, tensorrt: Tensorrt) -> None:
        tensorrt(no_attention="in parts")
        (one,) = build(bundle, self.OPTIONS)
        found = one.manifest
        assert (found.variant, found.decomposed_attention) == ("primitive-fp16", False)
        assert found.fallback is not None
        assert found.fallback.variant == "fused-fp16"
        assert "MyelinCheckException: no kernel for attention" in found.fallback.reason
        assert found.build_notes[0].startswith("built from primitive-fp16 instead of fused-fp16, for which no engine")
        (again,) = build(bundle, self.OPTIONS)  # what failed is not tried again
        assert again.cached
        planned = plan_engines(bundle, recipe(), self.OPTIONS)
        assert (planned.variant.name, planned.fallbacks["trunk"]) == ("primitive-fp16", found.fallback)

    def test_all_graphs_change_with_the_one_that_failed(self, bundle: Path, tensorrt: Tensorrt) -> None:
        """Engines of a target are of one variant: those that were built before as well."""
        folder = tensorrt()
        build(bundle, BuildOptions(graphs=("rpn",)))
        (folder / "settings.json").write_text(json.dumps({"no_attention": "in parts"}))
        build(bundle, self.OPTIONS)
        variants = {
            graph: read_engine_manifest(engine_paths(bundle, "mine", graph)[1]).variant for graph in ("rpn", "trunk")
        }
        assert variants == {"rpn": "primitive-fp16", "trunk": "primitive-fp16"}

    def test_a_bundle_without_it_says_what_to_add(self, wide_bundle: Path, tmp_path: Path, tensorrt: Tensorrt) -> None:
        tensorrt(no_attention="in parts")
        export_bundle(wide_bundle.parent / "checkpoint", tmp_path / "fused", ExportOptions("fp16"))
        with pytest.raises(
            EngineNotBuilt, match=r"has no primitive-fp16 to build instead: .*--dialect primitive --precision fp16"
        ):
            build(tmp_path / "fused", self.OPTIONS)
        assert list((tmp_path / "fused" / "engines" / "mine").iterdir()) == []

    def test_a_parser_without_the_operators_is_told_as_before(self, bundle: Path, tensorrt: Tensorrt) -> None:
        tensorrt(version="10.3.0")
        plan = plan_engines(bundle, recipe(), self.OPTIONS, any_release=True)
        with pytest.raises(BadInput, match=r"tensorrt 10\.3\.0 cannot read .*TensorScatter .*export the other dialect"):
            build_engines(plan)
        (one,) = build_engines(plan_engines(bundle, recipe(dialect="primitive"), self.OPTIONS, any_release=True))
        assert one.manifest.variant == "primitive-fp16"


class TestSeveralGpus:
    """TensorRT builds on the one GPU that CUDA counts first, or on the one that is named."""

    THERE = (CudaDevice(0, "NVIDIA L4", "SM89"), CudaDevice(1, "NVIDIA A10", "SM86"))

    @pytest.fixture(autouse=True)
    def _two(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "read_cuda_devices", lambda: self.THERE)
        # nvidia-smi has an order of its own.
        smi = (Gpu("NVIDIA A10", 24 << 30, "8.6", "570.1"), Gpu("NVIDIA L4", 24 << 30, "8.9", "570.1"))
        monkeypatch.setattr(plan, "read_gpus", lambda: smi)

    def test_the_first_is_not_the_targets(self, bundle: Path, tensorrt: Tensorrt) -> None:
        """Although one of them is: TensorRT would not build there."""
        tensorrt()
        message = r"mine is for SM86, and device 0 is NVIDIA L4 \(SM89\); build on NVIDIA A10 \(SM86\)"
        with pytest.raises(BadInput, match=message):
            plan_engines(bundle, recipe(), VISION)

    def test_the_one_that_is_named(self, bundle: Path, tensorrt: Tensorrt, monkeypatch: pytest.MonkeyPatch) -> None:
        """The build's own process sees no other."""
        folder = tensorrt()
        (one,) = build(bundle, BuildOptions(graphs=("vision",), device=1))
        assert one.manifest.gpu == "NVIDIA A10"
        assert json.loads((folder / "environment.json").read_text()) == "1"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
        build(bundle, BuildOptions(graphs=("trunk",), device=1))
        assert json.loads((folder / "environment.json").read_text()) == "GPU-7"

    def test_one_that_is_not_there(self, bundle: Path, tensorrt: Tensorrt) -> None:
        tensorrt()
        message = r"no device 2; this machine has 0: NVIDIA L4 \(SM89\), 1: NVIDIA A10 \(SM86\)"
        with pytest.raises(BadInput, match=message):
            plan_engines(bundle, recipe(), BuildOptions(graphs=("vision",), device=2))


def test_kernels_that_are_not_listed_are_not_judged(bundle: Path, tensorrt: Tensorrt) -> None:
    tensorrt(silent=True)
    (one,) = build(bundle)
    assert one.manifest.kernel_gate == ("not judged: the library listed no kernels",)
    assert build(bundle)[0].cached


class TestTimingCache:
    def test_each_build_adds_to_it(self, bundle: Path, tensorrt: Tensorrt, tmp_path: Path) -> None:
        tensorrt()
        cache = tmp_path / "my.timing"
        (first,) = build(bundle, VISION, cache)
        assert first.manifest.timing_cache == TimingCacheUse(0, len("pixel_values\n"))
        (second,) = build(bundle, BuildOptions(graphs=("trunk",)), cache)
        assert cache.read_text() == "pixel_values\ninputs_embeds\n"
        assert second.manifest.timing_cache == TimingCacheUse(13, 27)

    def test_builds_at_once_lose_nothing(self, bundle: Path, tensorrt: Tensorrt, tmp_path: Path) -> None:
        tensorrt()
        cache = tmp_path / "my.timing"
        build(bundle, BuildOptions(graphs=("vision", "trunk")), cache, jobs=2)
        assert sorted(cache.read_text().split()) == ["inputs_embeds", "pixel_values"]

    def test_it_does_not_change_the_key(self, bundle: Path, tensorrt: Tensorrt, tmp_path: Path) -> None:
        tensorrt()
        build(bundle, VISION, tmp_path / "my.timing")
        assert build(bundle)[0].cached

    @pytest.mark.parametrize("content", ["garbage", "another GPU"])
    def test_one_that_does_not_fit(self, bundle: Path, tensorrt: Tensorrt, tmp_path: Path, content: str) -> None:
        tensorrt()
        cache = tmp_path / "my.timing"
        cache.write_text(content)
        with pytest.raises(BadInput, match=r"does not accept this timing cache, .* name another file"):
            build(bundle, VISION, cache)
        assert cache.read_text() == content
        assert list((bundle / "engines" / "mine").iterdir()) == []

    def test_a_place_that_cannot_be_written(self, bundle: Path, tensorrt: Tensorrt, tmp_path: Path) -> None:
        tensorrt()
        with pytest.raises(BadInput, match="is a folder, not a regular file"):
            build(bundle, VISION, tmp_path)
