"""Targets of plain TensorRT: the same way through the builder, with a library that stands in for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdrpn.engine_manifest import TimingCacheUse
from sdrpn.engines import BuildOptions, BuiltEngine, Target, build_engines, plan, plan_engines, read_target
from sdrpn.errors import BadInput, RunFailed
from sdrpn.machine import Gpu, Jetson
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
        (folder / "tensorrt.py").write_text(Path(__file__).with_name("plain_tensorrt.py").read_text())
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
    assert (found.kernel_gate, found.hardware_compatibility, found.timing_cache) == ((), "NONE", None)
    assert found.activation_bytes is not None
    assert build(bundle, BuildOptions(graphs=("trunk",)))[0].cached


@pytest.mark.parametrize("version", ["10.13.3.9", "10.15.0"])
def test_thor_refuses_releases_that_compute_wrong_numbers(bundle: Path, tensorrt: Tensorrt, version: str) -> None:
    tensorrt(version=version)
    thor = read_target("jetson-thor")
    with pytest.raises(BadInput, match=rf"jetson-thor takes tensorrt >=10.16, this machine has {version}; .*--any-rel"):
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


def test_kernels_that_are_listed_otherwise_are_not_judged(bundle: Path, tensorrt: Tensorrt) -> None:
    """How TensorRT lists what it compiles was never seen: that is no reason to refuse its engines."""
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
        with pytest.raises(BadInput, match=r"does not take this timing cache, .* name another file with --timing"):
            build(bundle, VISION, cache)
        assert cache.read_text() == content
        assert list((bundle / "engines" / "mine").iterdir()) == []

    def test_a_place_that_cannot_be_written(self, bundle: Path, tensorrt: Tensorrt, tmp_path: Path) -> None:
        tensorrt()
        with pytest.raises(BadInput, match="is a folder, not a regular file"):
            build(bundle, VISION, tmp_path)
