"""Engines that do not fit are refused before they are loaded, in a line that names field, values and what to do."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.bundle.engine_manifest import (
    EngineManifest,
    Fallback,
    Stamp,
    TimingCacheUse,
    engine_paths,
    read_engine_manifest,
)
from sdrpn.errors import BadBundle, BadInput, EngineMismatch
from sdrpn.runtime.backends.tensorrt_library import Validity
from sdrpn.runtime.engines import preflight
from sdrpn.runtime.engines.engine_set import engine_set, engine_sets
from sdrpn.runtime.engines.platform import Platform, PlatformGpu
from sdrpn.runtime.engines.preflight import REASONS, Problem, check_engines, device_bytes, require_fit
from tests.damage import copied, flip_byte
from tests.runtime.engine_files import TARGET, platform, rewrite, write_engines


class Library:
    """Reports of every engine what the test says."""

    def __init__(self, answer: Validity | None) -> None:
        self.answer = answer

    def validity(self, path: Path) -> Validity | None:
        return self.answer


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library(Validity("VALID", (), ""))
    monkeypatch.setattr(preflight, "open_library", lambda flavour: found)
    return found


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, library: Library) -> Bundle:
    found = open_bundle(copied(tiny_bundle, tmp_path))
    write_engines(found)
    return found


def problems(bundle: Bundle, here: Platform | None = None, *, verify: bool = True) -> tuple[Problem, ...]:
    return check_engines(engine_set(bundle, TARGET), here or platform(), verify=verify)


def only(bundle: Bundle, here: Platform | None = None) -> str:
    (problem,) = problems(bundle, here)
    assert problem.reason in REASONS
    return str(problem)


def manifest_of(bundle: Bundle, graph: str = "trunk") -> Path:
    return engine_paths(bundle.path, TARGET, graph)[1]


def test_what_was_built_for_this_machine_fits(bundle: Bundle) -> None:
    assert problems(bundle) == ()
    require_fit(engine_set(bundle, TARGET), platform())


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where everything lies in nested dicts and lists, these themselves as well."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield (*place, key)
        yield from places(entry, (*place, key))


def alterations(value: Any) -> Iterator[Any]:
    """Values that are not this one."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        yield from (value + 1, -value - 1, str(value))
    elif isinstance(value, str):
        yield from (value + "x", value.upper() + " ", "")
    elif isinstance(value, list):
        yield from ([*value, "x"], value[1:] if value else ["x"], {})
    elif isinstance(value, dict):
        yield from ({**value, "x": 1}, {})
    if value is not None:
        yield None
    else:
        yield "x"


def put(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with something else in its place."""
    changed = json.loads(json.dumps(value))
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = new
    return changed


@pytest.fixture
def full_manifest(bundle: Bundle) -> Path:
    """One in which no entry is empty."""
    rewrite(
        bundle.path,
        "trunk",
        opt_level=3,
        workspace_mb=512,
        timing_cache=TimingCacheUse(3, 10),
        fallback=Fallback("fused-fp32", "no tactic", "2" * 64),
        kernel_gate=("remark: it holds weights twice",),
    )
    path = manifest_of(bundle)
    assert all(value not in ([], {}, None) for value in json.loads(path.read_text()).values())
    return path


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineManifest)] + ["digest"])
def test_a_manifest_with_any_entry_altered_is_refused(bundle: Bundle, full_manifest: Path, field: str) -> None:
    """Every entry, and whatever lies within it: another value, another type, more, less, nothing."""
    whole = json.loads(full_manifest.read_text())
    altered = [
        put(whole, (field, *place), new)
        for place in ((), *places(whole[field]))
        for new in alterations(value_at(whole, (field, *place)))
        if new != value_at(whole, (field, *place))
    ]
    assert len(altered) >= 2 or isinstance(whole[field], bool)
    for value in altered:
        full_manifest.write_text(json.dumps(value))
        with pytest.raises(
            BadBundle, match=r"was altered: its digest is|has format version .* build it again: sdrpn b"
        ):
            read_engine_manifest(full_manifest)
    (problem,) = problems(bundle)  # and so nothing is loaded
    assert (problem.graph, problem.reason, problem.field) == ("trunk", "MALFORMED_ENGINE", "manifest")
    full_manifest.write_text(json.dumps(whole))
    assert problems(bundle) == ()


def value_at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def test_a_manifest_with_an_entry_more_is_refused(full_manifest: Path) -> None:
    full_manifest.write_text(json.dumps({**json.loads(full_manifest.read_text()), "note": "mine"}))
    with pytest.raises(BadBundle, match="was altered: its digest is"):
        read_engine_manifest(full_manifest)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineManifest)])
def test_a_manifest_without_an_entry_is_refused(bundle: Bundle, field: str) -> None:
    path = manifest_of(bundle)
    value = json.loads(path.read_text())
    del value[field]
    path.write_text(json.dumps(value))
    assert "MALFORMED_ENGINE: manifest is not to be trusted" in only(bundle)


# What is written into a manifest together with the digest that it then gives, and what has to be said.
FORGED: dict[str, tuple[dict[str, Any], str]] = {
    "graph": ({"graph": "tail"}, "trunk: MALFORMED_ENGINE: graph is tail, it lies where that of trunk belongs; build"),
    "target": ({"target": "l4"}, "MALFORMED_ENGINE: target is l4, it lies where that of rtx-4090 belongs; build it"),
    "variant": ({"variant": "fused-fp8"}, "variant is fused-fp8, the bundle has fused-fp32, primitive-fp32; build it"),
    "precision": ({"precision": "fp16"}, "precision is fp16, fused-fp32 is fp32; build it again: sdrpn build"),
    "flavour": ({"flavour": "onnx"}, "flavour is onnx, known are tensorrt, tensorrt-rtx; build it again"),
    "capabilities": ({"compute_capabilities": ()}, "compute_capabilities is empty, an engine is for at least one;"),
    "max_context": ({"max_context": 512}, "max_context is 512, the bundle's is 256; build it again: sdrpn build"),
    "contexts": ({"contexts": (64,)}, r"contexts is \(64,\), max_context is 128; build it again: sdrpn build"),
    "no contexts": ({"contexts": ()}, r"contexts is \(\), max_context is 128; build it again: sdrpn build"),
    "sources": ({"sources": {}}, "sources is , the bundle's graph is made of trunk.fused-fp32.onnx, weights/"),
    "tensors": (
        {"tensors": ()},
        "inputs is , the graph has inputs_embeds, row_index, write_index, rope_cos, rope_sin, key_cache.0",
    ),
    "profiles": ({"profiles": ("decode",)}, "profiles of inputs_embeds is 2, the engine has decode; build it again"),
    "size": ({"engine": Stamp(5, 1, "")}, r"engine.size_bytes is 5, the file has 15; build it again: sdrpn build"),
    "digest": ({"engine": Stamp(15, 1, "0" * 64)}, r"engine.sha256 is 000000000000..., the file has [0-9a-f]{12}..."),
}


@pytest.mark.parametrize("case", list(FORGED))
def test_a_manifest_that_does_not_belong_here_is_refused(bundle: Bundle, case: str) -> None:
    changes, message = FORGED[case]
    rewrite(bundle.path, "trunk", **changes)
    found = problems(bundle)
    assert all(problem.broken for problem in found)
    assert any(re.search(message, str(problem)) for problem in found), [str(problem) for problem in found]


def change_tensor(bundle: Bundle, **changes: Any) -> None:
    (one,) = engine_set(bundle, TARGET).engines["trunk"].manifest.tensors[:1]  # type: ignore[union-attr]
    rest = engine_set(bundle, TARGET).manifests["trunk"].tensors[1:]
    rewrite(bundle.path, "trunk", tensors=(dataclasses.replace(one, **changes), *rest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "type of inputs_embeds is float16, the graph's is float32; build it again"),
        ({"dims": (-1, -1, 32)}, r"shape of inputs_embeds is \(-1, -1, 32\), the graph's is \('batch', 'sequence', 64"),
        ({"dims": (1, -1, 64)}, r"shape of inputs_embeds is \(1, -1, 64\)"),
        ({"mode": "output"}, "inputs is key_cache.0, .*, the graph has inputs_embeds"),
    ],
)
def test_tensors_of_another_graph_are_refused(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    change_tensor(bundle, **changes)
    assert re.search(message, only(bundle))


def test_engines_of_a_bundle_that_was_exported_again_are_refused(bundle: Bundle) -> None:
    sources = engine_set(bundle, TARGET).manifests["tail"].sources
    name = sorted(sources)[0]
    rewrite(bundle.path, "tail", sources={**sources, name: dataclasses.replace(sources[name], sha256="f" * 64)})
    assert re.search(rf"tail: MALFORMED_ENGINE: sources\[{name}\] is f{{12}}\.\.\., the bundle has", only(bundle))


def test_a_graph_without_an_engine(bundle: Bundle) -> None:
    for path in engine_paths(bundle.path, TARGET, "rpn"):
        path.unlink()
    assert only(bundle).startswith("rpn: MALFORMED_ENGINE: engine is not there, the model needs it; build it again:")


def test_an_engine_without_its_file(bundle: Bundle) -> None:
    engine_paths(bundle.path, TARGET, "rpn")[0].unlink()
    assert re.search(r"engine is not to be loaded, .*rpn.engine is missing; build it again: sdrpn build", only(bundle))


def test_engines_that_do_not_go_together(bundle: Bundle) -> None:
    other = open_bundle(bundle.path)
    write_engines(other, max_context=64, target="other")
    for path in engine_paths(bundle.path, "other", "tail"):
        path.replace(bundle.path / "engines" / TARGET / path.name)
    rewrite(bundle.path, "tail", target=TARGET)
    assert only(bundle).startswith("tail: MALFORMED_ENGINE: max_context is 64, that of trunk is 128; build it again:")


def test_engines_with_profiles_for_other_contexts_do_not_go_together(bundle: Bundle) -> None:
    rewrite(bundle.path, "rpn", contexts=(64, 128))
    messages = [str(problem) for problem in problems(bundle)]
    assert any("contexts is (64, 128), that of trunk is (128,); build it again:" in text for text in messages), messages


class TestDigests:
    def test_a_changed_byte(self, bundle: Bundle) -> None:
        flip_byte(engine_paths(bundle.path, TARGET, "vision")[0])
        assert "vision: MALFORMED_ENGINE: engine.sha256 is" in only(bundle)

    def test_large_engines_are_believed_while_their_time_is_unchanged(
        self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preflight, "SMALL_FILE_BYTES", 1)
        engine = engine_paths(bundle.path, TARGET, "vision")[0]
        before = engine.stat().st_mtime_ns
        flip_byte(engine)
        os.utime(engine, ns=(before, before))
        assert problems(bundle, verify=False) == ()
        assert problems(bundle, verify=True) != ()
        os.utime(engine, ns=(before + 1, before + 1))
        assert problems(bundle, verify=False) != ()


def without_gpu() -> Platform:
    return platform(gpu=None, cuda_driver=0, cuda_fault="cudaGetDeviceCount failed with no driver; see doctor")


def with_gpu(**changes: Any) -> Platform:
    gpu = platform().gpu
    assert gpu is not None
    return platform(gpu=dataclasses.replace(gpu, **changes))


EVERY = "vision, trunk, rpn, tail"
MACHINES: dict[str, tuple[Callable[[], Platform], str]] = {
    "another release": (
        lambda: platform(libraries={"tensorrt-rtx": "1.6.0.1"}),
        rf"{EVERY}: VERSION_MISMATCH: library_version is tensorrt-rtx 1\.7\.1\.116, here is 1\.6\.0\.1; build it again "
        r"with what is here: sdrpn build '.+' --target rtx-4090",
    ),
    "no library": (
        lambda: platform(libraries={"tensorrt-rtx": None}),
        rf"{EVERY}: VERSION_MISMATCH: library_version is tensorrt-rtx 1\.7\.1\.116, here is none; install it: "
        r"pip install 'sdrpn\[tensorrt-rtx\]'",
    ),
    "another GPU": (
        lambda: with_gpu(name="RTX 5090", capability="SM120"),
        rf"{EVERY}: UNSUPPORTED_CC: compute_capabilities is SM86 SM89, RTX 5090 is SM120; build for a target that has "
        r"SM120 \(see sdrpn targets\): sdrpn build '.+' --target NAME",
    ),
    "no GPU": (
        without_gpu,
        rf"{EVERY}: CUDA_ERROR: compute_capabilities is SM86 SM89, here is no GPU: cudaGetDeviceCount failed with no "
        r"driver; run it on a machine with one, or answer on the CPU \(backend onnxruntime\)",
    ),
    "an old driver": (
        lambda: platform(cuda_driver=12080),
        rf"{EVERY}: OLD_CUDA_DRIVER: CUDA is 13\.0, the driver has 12\.8; install a newer driver, or the cuda-python "
        r"of the driver's CUDA",
    ),
    "too little memory": (
        lambda: with_gpu(memory_free_bytes=1_000_000),
        r"all graphs: INSUFFICIENT_GPU_MEMORY: device memory is about \d\.\d MB, RTX 4090 has 1\.0 MB free: \d+\.\d kB "
        r"are missing; end what else uses the GPU, or build for a shorter context: sdrpn build '.+' --target rtx-4090 "
        r"--max-context N",
    ),
}


def test_memory_is_counted_for_all_that_are_answered_at_once(bundle: Bundle) -> None:
    write_engines(bundle, max_batch=4)
    engines = engine_set(bundle, TARGET)
    sizes = {batch: device_bytes(engines, batch) for batch in (1, 2, 4)}
    assert engines.max_batch == 4
    assert device_bytes(engines) == sizes[4]
    caches = 128 * (11 * 64 * 4 + 64 * 4)
    assert sizes[2] - sizes[1] == (sizes[4] - sizes[2]) // 2 == caches
    here = with_gpu(memory_free_bytes=sizes[2])
    assert check_engines(engines, here, max_batch=2) == ()
    with pytest.raises(EngineMismatch, match=r"decode fewer than 4 sequences together \(max_batch\), or build for a"):
        require_fit(engines, here)


@pytest.mark.parametrize("case", list(MACHINES))
def test_a_machine_that_does_not_fit(bundle: Bundle, case: str) -> None:
    make, message = MACHINES[case]
    assert re.fullmatch(message, only(bundle, make()))
    with pytest.raises(EngineMismatch, match=message):
        require_fit(engine_set(bundle, TARGET), make())


PLAIN = platform("tensorrt")


@pytest.mark.parametrize(
    ("here", "message"),
    [
        (PLAIN, ""),
        (
            dataclasses.replace(PLAIN, system="Windows"),
            "VERSION_MISMATCH: system is Linux, here is Windows; build it on",
        ),
        (
            dataclasses.replace(PLAIN, machine="aarch64"),
            "machine is x86_64, here is aarch64; build it on this machine: ",
        ),
        (
            dataclasses.replace(PLAIN, gpu=PlatformGpu("L4", "SM89", None, "535.10")),
            "OLD_CUDA_DRIVER: driver is 550.54, here is 535.10; install driver 550.54 or newer, or build it again",
        ),
    ],
)
def test_engines_of_plain_tensorrt_stay_where_they_were_built(
    tiny_bundle: Path, tmp_path: Path, library: Library, here: Platform, message: str
) -> None:
    found = open_bundle(copied(tiny_bundle, tmp_path))
    write_engines(found, flavour="tensorrt")
    library.answer = None  # it has no check of its own
    assert [re.search(message, str(problem)) is not None for problem in problems(found, here)] == [True] * bool(message)


@pytest.mark.parametrize(
    ("built", "here", "good"),
    [
        ("10.3.0", "10.3.0", True),
        ("10.3.0", "10.16.1.11", True),
        ("10.16.1.11", "10.3.0", False),  # older ones never run it
        ("10.16.1.11", "11.4.0.106", True),
        ("8.6.1", "11.4.0.106", False),
        ("11.4.0.106", "12.0", False),
    ],
)
def test_version_compatible_engines_run_with_later_releases(
    tiny_bundle: Path, tmp_path: Path, library: Library, built: str, here: str, good: bool
) -> None:
    found = open_bundle(copied(tiny_bundle, tmp_path))
    write_engines(found, flavour="tensorrt")
    library.answer = None
    for graph in ("vision", "trunk", "rpn", "tail"):
        rewrite(found.path, graph, library_version=built, version_compatible=True)
    machine = platform("tensorrt", libraries={"tensorrt": here})
    assert ["VERSION_MISMATCH"] * (not good) == [problem.reason for problem in problems(found, machine)]
    assert engine_set(found, TARGET).host_code
    for graph in ("vision", "trunk", "rpn", "tail"):
        rewrite(found.path, graph, version_compatible=False)
    assert bool(problems(found, machine)) is (built != here)
    assert not engine_set(found, TARGET).host_code


@pytest.mark.parametrize(("capability", "good"), [("SM80", True), ("SM120", True), ("SM75", False)])
def test_hardware_compatible_engines_run_on_ampere_and_later(
    tiny_bundle: Path, tmp_path: Path, library: Library, capability: str, good: bool
) -> None:
    found = open_bundle(copied(tiny_bundle, tmp_path))
    write_engines(found, flavour="tensorrt")
    library.answer = None
    for graph in ("vision", "trunk", "rpn", "tail"):
        rewrite(found.path, graph, hardware_compatibility="AMPERE_PLUS")
    machine = dataclasses.replace(PLAIN, gpu=PlatformGpu("some GPU", capability, None, "580.1"))
    told = " ".join(map(str, problems(found, machine)))
    expected = "" if good else r".*UNSUPPORTED_CC: .* is SM86 SM89 and later, some GPU is SM75; build for a target .*"
    assert re.fullmatch(expected, told), told


def test_engines_of_tensorrt_rtx_do_not_depend_on_the_system(bundle: Bundle) -> None:
    assert problems(bundle, platform(system="Windows", machine="aarch64")) == ()


@pytest.mark.parametrize("reason", REASONS)
def test_what_the_library_says_is_passed_on(bundle: Bundle, library: Library, reason: str) -> None:
    library.answer = Validity("INVALID", (reason,), "so it is")
    assert only(bundle).startswith(f"{EVERY}: {reason}: get_engine_validity is INVALID, tensorrt-rtx says: so it is; ")


def test_an_engine_that_is_merely_slow_is_taken(bundle: Bundle, library: Library) -> None:
    library.answer = Validity("SUBOPTIMAL", (), "")
    assert problems(bundle) == ()


def test_a_refusal_without_a_reason_is_one_of_cuda(bundle: Bundle, library: Library) -> None:
    library.answer = Validity("INVALID", (), "no driver")
    assert ": CUDA_ERROR: get_engine_validity is INVALID, tensorrt-rtx says: no driver; see" in only(bundle)


def test_memory_counts_weights_caches_taps_and_the_largest_activations(bundle: Bundle) -> None:
    spec, rows = bundle.spec, 128
    engines = engine_set(bundle, TARGET)
    weights = sum(engine.path.stat().st_size for engine in engines.engines.values())
    caches = (2 * (spec.llm.layers + 1) + 1) * spec.llm.kv_heads * rows * spec.llm.head_dim * 4  # fp32
    assert device_bytes(engines) == weights + caches + rows * spec.llm.width * 4 + (1 << 20)
    for graph in engines.engines:
        rewrite(bundle.path, graph, weight_streaming=True)
    assert device_bytes(engine_set(bundle, TARGET)) == device_bytes(engines) - weights


def test_a_target_without_engines(bundle: Bundle) -> None:
    with pytest.raises(BadInput, match=r"has no engines for target 'l4'; it has rtx-4090. Build them: sdrpn build"):
        engine_set(bundle, "l4")
    assert [target.target for target in engine_sets(bundle)] == [TARGET]


def test_the_reasons_are_those_of_tensorrt_rtx() -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings")
    assert set(REASONS) == set(rtx.EngineInvalidityDiagnostics.__members__)
