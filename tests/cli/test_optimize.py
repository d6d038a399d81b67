"""`sdrpn optimize`: graphs saved for this machine answer as the bundle's own, and only where they fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sdrpn import machine
from sdrpn.bundle import Bundle, GraphInfo, open_bundle
from sdrpn.errors import BadBundle, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.optimized import OPTIMIZED_NAME, OptimizedManifest
from sdrpn.runtime import Session
from sdrpn.runtime import choice as runtime_choice
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from sdrpn.runtime.optimize import save_graph
from tests.cli.command import Command, refusal
from tests.pictures import photo
from tests.tolerances import REUSE_LOGITS_ABS

INT4, HALF, CODED = "fused-int4-cpu", "fused-int4", "fused-fp32-kv-int8"
BEFORE, AFTER = (1, 5, 9), (7, 11, 12, 30)
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(scope="module")
def exported(text_checkpoint: Path, text_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fused-fp32, primitive-fp32, int4, and caches in 8 bits."""
    path = tmp_path_factory.mktemp("optimize") / "bundle"
    shutil.copytree(text_bundle, path)
    export_bundle(text_checkpoint, path, ExportOptions("int4"))
    export_bundle(text_checkpoint, path, ExportOptions(kv_cache="int8"))
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """One to write to."""
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def optimized(sdrpn: Command, bundle: Path, *arguments: object) -> Path:
    """The folder that was written."""
    return Path(json.loads(sdrpn("optimize", bundle, "--threads", 1, *arguments, "--json").out)["folder"])


@pytest.mark.parametrize("variant", ["fused-fp32", INT4, HALF, "primitive-fp32", CODED])
def test_answers_are_those_of_the_bundles_own_graphs(sdrpn: Command, bundle: Path, variant: str) -> None:
    folder = optimized(sdrpn, bundle, "--variant", variant)
    answers = []
    for use in (True, False):
        with Session.open(bundle, variant=variant, threads=1, optimized=use) as session:
            loaded = session._decoder._runners["tail"]._session._model_path  # type: ignore[attr-defined]
            assert (Path(loaded).parent == folder) == use
            answers.append(session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=5, trace=True))
    saved, own = answers
    assert saved.token_ids == own.token_ids
    assert saved.boxes_xyxy_px == own.boxes_xyxy_px
    assert saved.trace is not None
    assert own.trace is not None
    # Activations in 8 bits may round to the other side after sums in another order.
    tolerance = 0.05 if variant == INT4 else REUSE_LOGITS_ABS
    assert np.abs(saved.trace.step_logits - own.trace.step_logits).max() <= tolerance


def test_what_is_reported(sdrpn: Command, bundle: Path) -> None:
    report = json.loads(sdrpn("optimize", bundle, "--threads", 1, "--json").out)
    folder = Path(report["folder"])
    assert folder.parent == bundle / "optimized" / "fused-fp32"
    assert report["attention"] == "group-query"
    assert sorted(report["files"]) == sorted(path.name for path in folder.iterdir() if path.name != OPTIMIZED_NAME)
    # The packed form takes the place of the plain one in memory; on disk both lie.
    assert report["mapped_bytes"] < report["size_bytes"]
    plan = sdrpn("plan", bundle, "--variant", "fused-fp32", "--json").json()
    assert (plan["device"], plan["needs"]["weights_bytes"]) == (
        "this machine's CPU, optimized graphs",
        report["mapped_bytes"],
    )


class TestWhereItFits:
    def test_another_processor_takes_the_bundles_own_graphs(
        self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = optimized(sdrpn, bundle)
        other = dataclasses.replace(machine.read_cpu(), features=("avx10",))
        monkeypatch.setattr(runtime_choice, "read_cpu", lambda: other)
        note = note_of(bundle)
        assert note.startswith(f"the optimized graphs are for {folder.name}, not for ort-")
        assert note.endswith(f"sdrpn optimize {bundle} --variant fused-fp32")

    def test_another_export_makes_them_stale(self, sdrpn: Command, bundle: Path, text_checkpoint: Path) -> None:
        optimized(sdrpn, bundle, "--variant", INT4)
        export_bundle(text_checkpoint, bundle, ExportOptions("int4", method="hqq"))
        assert "was made from another export of this bundle" in note_of(bundle, INT4)

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda path: path.write_text("{"), "cannot be understood"),
            (lambda path: path.write_text("[]"), "cannot be understood"),
            (lambda path: path.write_text('{"format_version": 9}'), "has format version 9"),
        ],
    )
    def test_a_manifest_that_cannot_be_read(
        self, sdrpn: Command, bundle: Path, damage: Callable[[Path], object], told: str
    ) -> None:
        damage(optimized(sdrpn, bundle) / OPTIMIZED_NAME)
        assert told in note_of(bundle)

    def test_a_changed_file_is_refused(self, sdrpn: Command, bundle: Path) -> None:
        path = optimized(sdrpn, bundle) / "trunk.onnx.data"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(BadBundle, match=r"trunk\.onnx\.data was changed; make them again: sdrpn optimize"):
            Session.open(bundle, variant="fused-fp32")
        path.write_bytes(data[:-1])
        with pytest.raises(BadBundle, match=r"trunk\.onnx\.data is missing or was cut"):
            Session.open(bundle, variant="fused-fp32", verify=False)


def note_of(bundle: Path, variant: str = "fused-fp32") -> str:
    with Session.open(bundle, variant=variant, threads=1) as session:
        session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=1)
        assert session.backend_note is not None
        return session.backend_note


class TestRefusals:
    def test_group_query_attention_without_attention_operators(self, sdrpn: Command, bundle: Path) -> None:
        outcome = sdrpn("optimize", bundle, "--variant", "primitive-fp32", "--attention", "group-query")
        assert refusal(outcome) == "primitive-fp32 has no attention operators to replace; use --attention standard"

    def test_group_query_attention_where_graphs_are_cut_for_engines(self, sdrpn: Command, bundle: Path) -> None:
        outcome = sdrpn("optimize", bundle, "--variant", HALF, "--attention", "group-query")
        assert refusal(outcome) == f"{HALF} computes in fp16 and is cut for engines; use --attention standard"

    def test_the_shipped_bundle(self, sdrpn: Command) -> None:
        message = refusal(sdrpn("optimize", "default"))
        assert "nothing is written there; optimise a copy of it: cp -r " in message

    def test_group_query_attention_with_a_scale_for_every_row(self, sdrpn: Command, bundle: Path) -> None:
        outcome = sdrpn("optimize", bundle, "--variant", CODED, "--attention", "group-query")
        expected = (
            f"{CODED} has a scale for every row of its caches, and ONNX Runtime's operator takes one for all; "
            "use --attention standard"
        )
        assert refusal(outcome) == expected

    def test_too_little_space(self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: DiskUsage(10**9, 10**9 - 1000, 1000))
        assert "its disk has 1.0 kB free" in refusal(sdrpn("optimize", bundle), 1)
        assert not (bundle / "optimized").exists()

    def test_weights_that_were_not_written_whole(
        self, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where a disk is full: holes instead of numbers."""
        opened, original = open_bundle(bundle), OnnxRuntimeBackend.load

        def load(self: OnnxRuntimeBackend, graph: GraphInfo, path: Path) -> OnnxRuntimeRunner:
            data = path.with_name(f"{path.name}.data")
            data.write_bytes(bytes(data.stat().st_size))
            return original(self, graph, path)

        monkeypatch.setattr(OnnxRuntimeBackend, "load", load)
        path, graph = graph_of(opened, "trunk")
        with pytest.raises(RunFailed, match="of the trunk graph changed when it was saved; is the disk full"):
            save_graph(graph, path, opened.path, tmp_path / "trunk.onnx", 1)

    def test_a_failure_leaves_nothing(self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: OptimizedManifest) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(OptimizedManifest, "to_text", fail)
        assert "the disk is full" in refusal(sdrpn("optimize", bundle), 1)
        assert list(bundle.rglob("*.data")) == []


def graph_of(bundle: Bundle, name: str) -> tuple[Path, GraphInfo]:
    graph = bundle.variant("fused-fp32").graphs[name]
    return bundle.file(graph.file), graph


def test_the_manifest_survives_its_text() -> None:
    manifest = OptimizedManifest("v", "1.32", "cpu", "ab", "standard", "cd", {"trunk": "trunk.onnx"}, {}, 5)
    assert OptimizedManifest.from_json(json.loads(manifest.to_text())) == manifest
