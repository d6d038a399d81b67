"""Sessions that can only look: what is loaded, what is verified, and what they say when asked for words."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, open_bundle
from sdrpn.bundle.engine_manifest import engine_paths
from sdrpn.bundle.graphs import GRAPHS, graphs_of
from sdrpn.bundle.memory import cpu_needs, device_needs
from sdrpn.errors import BadBundle, BadInput, EngineMismatch
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import Session
from sdrpn.runtime.engines.engine_set import engine_set
from sdrpn.runtime.select import choose_backend
from tests.damage import copied
from tests.runtime.asking import BEFORE, QUESTION, picture
from tests.runtime.engine_files import TARGET, platform, write_engines
from tests.runtime.gpu import FakeGpu

LOOKS = ("vision", "trunk", "rpn")


def tailless(folder: Path) -> Path:
    """A copy whose tail is broken: its graph, which nothing else needs."""
    for path in folder.glob("tail.*.onnx"):
        path.write_bytes(b"no graph")
    return folder


@pytest.mark.parametrize("variant", ["fused-fp32", "primitive-fp32"])
def test_it_finds_what_the_whole_finds(tiny_bundle: Path, variant: str) -> None:
    found = []
    for parts in ("all", "look"):
        with Session.open(tiny_bundle, variant=variant, threads=1, parts=parts) as session:
            found.append(session.look_ids(picture(), BEFORE, QUESTION))
    assert found[0] == found[1]


def test_it_needs_no_tail(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tailless(copied(tiny_bundle, tmp_path))
    with Session.open(folder, threads=1, parts="look") as session:
        assert sorted(session.variant.graphs) == sorted(LOOKS)
        assert session.look_ids(picture(), BEFORE, QUESTION).roi_map.shape == session.spec.vision.grid((130, 90)).hw
    with pytest.raises(BadBundle, match=r"tail\."):
        Session.open(folder, threads=1)


def test_it_answers_nothing_and_says_why(tiny_bundle: Path) -> None:
    with Session.open(tiny_bundle, threads=1, parts="look") as session:
        with pytest.raises(BadInput, match=r'opened with parts="look", without the tail, .* parts="all", or look'):
            session.answer_ids(picture(), BEFORE, QUESTION)
        assert session.look_ids(picture(), BEFORE, QUESTION).image_wh == (130, 90)


def test_parts_that_are_none(tiny_bundle: Path) -> None:
    with pytest.raises(BadInput, match="parts is 'tail'; expected 'all' or 'look'"):
        Session.open(tiny_bundle, parts="tail")  # type: ignore[arg-type]


def test_without_an_rpn_nothing_looks(tiny_spec: ModelSpec) -> None:
    with pytest.raises(BadInput, match="this bundle has no RPN, so that nothing can look"):
        graphs_of(dataclasses.replace(tiny_spec, rpn=None), "look")
    assert [graph.name for graph in GRAPHS if graph.looks] == [*LOOKS[:-1], "gate", LOOKS[-1]]


def test_memory_is_that_of_what_is_loaded(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    whole = bundle.variant("fused-fp32")
    part = whole.with_graphs(LOOKS)
    more, less = (cpu_needs(bundle, variant, context=100) for variant in (whole, part))
    spec = bundle.spec
    row = spec.llm.kv_heads * spec.llm.head_dim * 4
    assert more.caches_bytes - less.caches_bytes == 100 * 2 * spec.tail_layers * row
    tail = sum(bundle.manifest.files[file].size_bytes for file in whole.graphs["tail"].weights)
    assert more.weights_bytes - less.weights_bytes == tail
    assert more.images_bytes == 3 * less.images_bytes
    gpu = device_needs(spec, 7, context=100), device_needs(spec, 7, context=100, parts="look")
    assert gpu[0].caches_bytes - gpu[1].caches_bytes == 100 * 2 * spec.tail_layers * row // 2  # in fp16


class NoLibrary:
    """Says nothing of an engine, as plain TensorRT does."""

    def validity(self, path: Path) -> None:
        return None


class TestEngines:
    @pytest.fixture
    def bundle(self, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
        """With engines of all graphs but the tail, on a machine that they fit."""
        monkeypatch.setattr("sdrpn.runtime.select.read_platform", lambda device: platform())
        monkeypatch.setattr("sdrpn.runtime.engines.preflight.open_library", lambda flavour: NoLibrary())
        bundle = open_bundle(copied(tiny_bundle, tmp_path))
        write_engines(bundle)
        for path in engine_paths(bundle.path, TARGET, "tail"):
            path.unlink()
        return bundle

    def test_a_set_without_the_tail_is_enough_for_looks(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sdrpn.runtime.select.read_platform", lambda device: platform())
        assert engine_set(bundle, TARGET).looks
        choice = choose_backend(bundle, "tensorrt", parts="look")
        assert choice.engines is not None
        assert sorted(choice.engines.engines) == sorted(LOOKS)
        assert choose_backend(bundle, parts="look").backend == "tensorrt"

    def test_and_for_nothing_else(self, bundle: Bundle) -> None:
        with pytest.raises(EngineMismatch, match=r'tail: .* not there, .*, or open what is there with parts="look"'):
            choose_backend(bundle, "tensorrt", target=TARGET)
        choice = choose_backend(bundle)
        assert choice.backend == "onnxruntime"
        assert choice.note is not None
        assert 'parts="look"' in choice.note

    def test_the_tail_alone_is_no_set_for_looks(self, bundle: Bundle) -> None:
        write_engines(bundle)
        for graph in LOOKS:
            engine_paths(bundle.path, TARGET, graph)[1].unlink()
        assert not engine_set(bundle, TARGET).looks
        with pytest.raises(BadInput, match="has no engines; build them"):
            choose_backend(bundle, "tensorrt", parts="look")


def test_engines_without_a_tail_look(gpu: FakeGpu, tiny_bundle: Path) -> None:
    """On a GPU that is not there, as ONNX Runtime does."""
    paths = {name: gpu.engine(name) for name in LOOKS}
    variant = gpu.bundle.variant(gpu.variant).with_graphs(LOOKS)
    with Session(gpu.bundle, variant, gpu.backend(), paths) as session:
        found = session.look_ids(picture(), BEFORE, QUESTION)
        assert gpu.graphs() == ["vision", "trunk", "rpn"]
        with pytest.raises(BadInput, match='parts="look"'):
            session.answer_ids(picture(), BEFORE, QUESTION)
    with Session.open(tiny_bundle, variant=gpu.variant, threads=1) as plain:
        expected = plain.look_ids(picture(), BEFORE, QUESTION)
    np.testing.assert_allclose(found.roi_map, expected.roi_map, atol=1e-5)
    assert found.boxes_xyxy_px == expected.boxes_xyxy_px


def test_a_release_without_its_tail(tiny_bundle: Path, tmp_path: Path) -> None:
    """Files of the tail that are missing altogether stop nobody who looks."""
    folder = copied(tiny_bundle, tmp_path)
    bundle = open_bundle(folder)
    chosen = bundle.variant("fused-fp32")
    kept = set(chosen.with_graphs(LOOKS).files) | {bundle.manifest.tokenizer, "manifest.json"}
    for path in list(folder.rglob("*")):
        if path.is_file() and str(path.relative_to(folder)) not in kept:
            path.unlink()
    shutil.rmtree(folder / "engines", ignore_errors=True)
    with Session.open(folder, variant="fused-fp32", threads=1, parts="look") as session:
        assert session.look_ids(picture(), BEFORE, QUESTION).image_wh == (130, 90)
