"""`sdrpn optimize`: graphs saved for this machine answer as the bundle's own, and only where they fit."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrpn.bundle.bundle import Bundle, FileInfo, GraphInfo, open_bundle
from sdrpn.bundle.optimized import OPTIMIZED_NAME, OptimizedManifest
from sdrpn.bundle.shipped import bundle_path
from sdrpn.errors import BadBundle, RunFailed
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.host import machine
from sdrpn.runtime import Session
from sdrpn.runtime import select as runtime_choice
from sdrpn.runtime.backends import backend_info, openvino_info
from sdrpn.runtime.backends.external_data import with_files
from sdrpn.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from sdrpn.runtime.optimize import save_graph
from sdrpn.workflows import part_codes
from tests.cli.command import Command, refusal
from tests.damage import edit_json
from tests.pictures import photo
from tests.tolerances import REUSE_LOGITS_ABS

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
with contextlib.suppress(ImportError):  # where it is not installed, its tests are skipped
    from sdrpn.runtime.backends import openvino as openvino_module

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


class TestForOpenVino:
    """Graphs in its own form: the same answers, from files that are mapped."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("openvino")

    @pytest.mark.parametrize("variant", ["fused-fp32", INT4])
    def test_answers_are_those_of_the_bundles_own_graphs(
        self, sdrpn: Command, bundle: Path, variant: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = optimized(sdrpn, bundle, "--variant", variant, "--for", "openvino")
        assert folder.name.startswith("openvino-")
        assert {path.suffix for path in folder.iterdir()} == {".xml", ".bin", ".json"}
        loaded: list[Path] = []
        original = openvino_module.OpenVinoBackend.load

        def load(backend: Any, graph: GraphInfo, path: Path) -> Any:
            loaded.append(path)
            return original(backend, graph, path)

        monkeypatch.setattr(openvino_module.OpenVinoBackend, "load", load)
        answers = []
        for use in (True, False):
            loaded.clear()
            with Session.open(bundle, backend="openvino", variant=variant, threads=1, optimized=use) as session:
                assert {path.parent == folder for path in loaded} == {use}
                answers.append(session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=5, trace=True))
        saved, own = answers
        assert saved.token_ids == own.token_ids
        assert saved.boxes_xyxy_px == own.boxes_xyxy_px
        assert saved.trace is not None
        assert own.trace is not None
        np.testing.assert_array_equal(saved.trace.step_logits, own.trace.step_logits)

    def test_each_library_takes_its_own(self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(openvino_info, "SMALL_MATRIX", 0)
        monkeypatch.setattr(openvino_info, "MOST_COPIED_BYTES", 0)  # which are not mapped
        optimized(sdrpn, bundle, "--variant", INT4)
        assert runtime_choice.choose_backend(open_bundle(bundle)).backend == "onnxruntime"
        optimized(sdrpn, bundle, "--variant", INT4, "--for", "openvino", "--int8", "lm_head,rpn,vision")
        assert runtime_choice.choose_backend(open_bundle(bundle)).backend == "openvino"
        plans = [
            sdrpn("plan", bundle, "--variant", INT4, "--backend", backend, "--json").json()["needs"]["weights_bytes"]
            for backend in ("onnxruntime", "openvino")
        ]
        manifests = [
            json.loads(path.read_text()) for path in sorted(bundle.glob(f"optimized/{INT4}/*/{OPTIMIZED_NAME}"))
        ]
        assert {manifest["library"]: manifest["mapped_bytes"] for manifest in manifests} == {
            "onnxruntime": plans[0],
            "openvino": plans[1],
        }

    def test_where_memory_is_short_the_other_library_answers(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(openvino_info, "SMALL_MATRIX", 0)
        assert runtime_choice.choose_backend(open_bundle(bundle)).backend == "openvino"
        monkeypatch.setattr(runtime_choice, "read_available_memory", lambda: 1000)
        assert runtime_choice.choose_backend(open_bundle(bundle)).backend == "onnxruntime"

    def test_attention_is_not_for_it(self, sdrpn: Command, bundle: Path) -> None:
        told = refusal(sdrpn("optimize", bundle, "--for", "openvino", "--attention", "standard"))
        assert "attention is for ONNX Runtime: OpenVINO has one form" in told


class TestWhatAStepReads:
    @pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="kernels elsewhere pack otherwise")
    def test_scales_are_packed_as_counted(self, sdrpn: Command, bundle: Path) -> None:
        """Beside the codes there is what is counted for a block, and nothing else but room to align a matrix."""
        report = json.loads(sdrpn("optimize", bundle, "--threads", 1, "--variant", INT4, "--json").out)
        weights = 2 * (64 * 128 + 64 * 64 + 3 * 64 * 96)  # of the trunk's two layers
        counted = weights // 2 + weights // 32 * backend_info("onnxruntime").scale_bytes
        assert counted <= report["read_bytes"]["trunk"] < counted + 8 * 128
        with Session.open(bundle, variant=INT4, threads=1) as session:
            assert session.step_bytes(0) == report["read_bytes"]["trunk"] + report["read_bytes"]["tail"]

    @pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
    def test_it_is_reported_of_saved_graphs(self, sdrpn: Command, bundle: Path, library: str) -> None:
        if library == "openvino":
            pytest.importorskip("openvino")
        name = {"onnxruntime": INT4, "openvino": HALF}[library]
        sdrpn("optimize", bundle, "--threads", 1, "--variant", name, "--for", library)
        command = (
            "bench",
            bundle,
            "--variant",
            name,
            "--backend",
            library,
            "--cases",
            "plain",
            "--no-verify",
            "--json",
        )
        options = ("--runs", 1, "--new-tokens", 3, "--threads", 1)
        more = ("--kv-cache", "int8") if library == "openvino" else ()
        plain, other = (
            json.loads(sdrpn(*command, *options, *extra).out)["cases"][0] for extra in (("--no-optimized",), more)
        )
        assert plain["token_bytes"] > 0 < other["token_bytes"]

    def test_scales_in_fp16_count_as_what_kernels_read(self, sdrpn: Command, bundle: Path) -> None:
        """The same numbers, whichever type the saved graph has them in."""
        pytest.importorskip("openvino")
        read = []
        for name in (INT4, HALF):
            command = ("optimize", bundle, "--threads", 1, "--variant", name, "--for", "openvino", "--json")
            read.append(json.loads(sdrpn(*command).out)["read_bytes"]["trunk"])
        assert read[0] == pytest.approx(read[1], rel=0.01)


def test_a_gate_of_one_layer(sdrpn: Command, tmp_path: Path) -> None:
    """The shipped model's has one query, which is projected by itself: its attention stays as it is."""
    path = shutil.copytree(bundle_path("demo"), tmp_path / "bundle")
    report = json.loads(sdrpn("optimize", path, "--threads", 1, "--json").out)
    assert "gate" in report["graphs"]
    assert report["attention"] == "group-query"


class TestEightBits:
    def test_parts_in_floats_become_8_bits_where_that_changes_little(
        self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Random weights without redundancy: the effect of 8 bits is there, and small."""
        plain = json.loads(sdrpn("optimize", bundle, "--threads", 1, "--variant", INT4, "--json").out)
        assert plain["int8"] == {}
        parts = ("--int8", "lm_head,rpn,vision")
        report = json.loads(sdrpn("optimize", bundle, "--threads", 1, "--variant", INT4, *parts, "--json").out)
        assert report["int8"].keys() == {"lm_head", "rpn", "vision"}
        assert all(0 < share < 0.05 for share in report["int8"].values())
        assert report["left"] == {}
        assert report["mapped_bytes"] < plain["mapped_bytes"]
        with Session.open(bundle, variant=INT4, threads=1) as session:
            assert session.backend_note is None
            session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=2)
        monkeypatch.setitem(part_codes._MOST_CHANGED, 8, min(report["int8"].values()) * 1.001)
        outcome = sdrpn("optimize", bundle, "--threads", 1, "--variant", INT4, *parts)
        assert outcome.out.count("stays in floats: 8 bits would change its results by") == 2
        assert outcome.out.count("in 8 bits, which changes its results by") == 1

    def test_products_in_16_bits_of_files_with_several_names(self, sdrpn: Command, tmp_path: Path) -> None:
        """As an installed release has them: its files are hard links."""
        pytest.importorskip("openvino")
        shutil.copytree(bundle_path("demo"), tmp_path / "b", copy_function=os.link)
        options = ("--for", "openvino", "--variant", "fused-int8", "--int8", "lm_head", "--threads", 1, "--json")
        report = sdrpn("optimize", tmp_path / "b", *options).json()
        assert 0 < report["int8"]["lm_head"] < 0.05

    def test_a_part_that_does_not_exist(self, sdrpn: Command, bundle: Path) -> None:
        told = refusal(sdrpn("optimize", bundle, "--int8", "head"))
        assert "there is no part head to put in 8 bits; expected some of lm_head, rpn, vision" in told


class TestFourBits:
    @pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
    def test_a_head_in_4_bits(self, sdrpn: Command, bundle: Path, text_checkpoint: Path, library: str) -> None:
        """From the checkpoint as from the bundle's floats; OpenVINO multiplies it as the other matrices in 4 bits."""
        if library == "openvino":
            pytest.importorskip("openvino")
        command = ("optimize", bundle, "--threads", 1, "--variant", INT4, "--for", library, "--json")
        plain = sdrpn(*command, "--int8", "lm_head").json()
        reports = [
            sdrpn(*command, "--int4", "lm_head", *more).json() for more in ((), ("--checkpoint", text_checkpoint))
        ]
        for report in reports:
            assert report["int8"] == {}
            assert 0.05 < report["int4"]["lm_head"] < 0.15
            assert report["read_bytes"]["tail"] < plain["read_bytes"]["tail"]
        with Session.open(bundle, backend=library, variant=INT4, threads=1) as session:
            assert session.backend_note is None
            session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=2)

    def test_it_stays_where_4_bits_would_change_much(
        self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(part_codes._MOST_CHANGED, 4, 0.01)
        outcome = sdrpn("optimize", bundle, "--threads", 1, "--variant", INT4, "--int4", "lm_head", "--int8", "vision")
        assert "lm_head stays as it is: 4 bits would change its results by" in outcome.out
        assert "vision in 8 bits, which changes its results by" in outcome.out

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (("--int4", "rpn"), "there is no part rpn to put in 4 bits; expected some of lm_head"),
            (("--int4", "lm_head", "--int8", "lm_head"), "lm_head is to be in 8 bits and in 4; list it once"),
            (("--checkpoint", "x"), "a checkpoint is for blocks that are made again, or for a head in 4 bits"),
            (("--rpn", "x", "--int4", "lm_head"), "an RPN is part of the checkpoint that it belongs to"),
        ],
    )
    def test_what_is_refused(self, sdrpn: Command, bundle: Path, options: tuple[str, ...], told: str) -> None:
        assert told in refusal(sdrpn("optimize", bundle, *options))


class TestWhereItFits:
    def test_another_processor_takes_the_bundles_own_graphs(
        self, sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = optimized(sdrpn, bundle)
        other = dataclasses.replace(machine.read_cpu(), features=("avx10",))
        monkeypatch.setattr(runtime_choice, "read_cpu", lambda: other)
        note = note_of(bundle)
        assert note.startswith(f"the optimized graphs are for {folder.name}, not for ort-")
        assert note.endswith(
            f"sdrpn optimize {bundle} --variant fused-fp32 (or run without them: "
            "`sdrpn ask --no-optimized`, optimized=False)"
        )

    @pytest.mark.parametrize(
        ("entry", "value", "told"),
        [
            ("version", "1.2.3", "are for fused-fp32 with onnxruntime 1.2.3 on "),
            ("cpu_sha256", "0" * 64, "are for fused-fp32 with onnxruntime "),
            ("variant", "fused-int4", "are for fused-int4 with onnxruntime "),
        ],
    )
    def test_a_folder_that_was_renamed_is_not_used(
        self, sdrpn: Command, bundle: Path, entry: str, value: str, told: str
    ) -> None:
        folder = optimized(sdrpn, bundle)
        edit_json(folder / OPTIMIZED_NAME, lambda manifest: manifest.update({entry: value}))
        note = note_of(bundle)
        assert note.startswith(f"the optimized graphs in {folder} {told}")
        assert "not for its name; make them again: sdrpn optimize " in note

    def test_another_export_makes_them_stale(self, sdrpn: Command, bundle: Path, text_checkpoint: Path) -> None:
        optimized(sdrpn, bundle, "--variant", INT4)
        export_bundle(text_checkpoint, bundle, ExportOptions("int4", method="hqq"))
        assert "was made from another export of this bundle" in note_of(bundle, INT4)

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda path: path.write_text("[]"), "has format version null"),
            (lambda path: path.write_text('{"format_version": 9}'), "has format version 9"),
        ],
    )
    def test_a_manifest_of_another_release(
        self, sdrpn: Command, bundle: Path, damage: Callable[[Path], object], told: str
    ) -> None:
        damage(optimized(sdrpn, bundle) / OPTIMIZED_NAME)
        assert told in note_of(bundle)

    @pytest.mark.parametrize(
        ("damage", "told"),
        [
            (lambda path: path.write_text("{"), r"cannot be read \(it is not JSON: .*\); make them again: sdrpn optim"),
            (lambda path: path.write_text("[" * 100_000), r"cannot be read \(it is nested too deeply\)"),
            (lambda path: path.write_bytes(b" " * 5_000_000), "it has 5,000,000 bytes; expected at most 4,194,304"),
            (lambda path: replace_by(path, os.mkfifo), "it is a pipe, not a regular file"),
            (lambda path: replace_by(path, lambda new: new.symlink_to("/dev/zero")), "is a link that leaves"),
            (
                lambda path: edit_json(path, lambda value: value["graphs"].update(trunk=3)),
                "graphs.trunk is 3; expected",
            ),
            (
                lambda path: edit_json(path, lambda value: value["graphs"].update(trunk="/tmp/trunk.onnx")),
                r'graphs\.trunk is "/tmp/trunk\.onnx"; expected a listed file that ends in \.onnx',
            ),
            (
                lambda path: edit_json(path, lambda value: value["graphs"].update(trunk="../../trunk.onnx")),
                r'graphs\.trunk is "\.\./\.\./trunk\.onnx"; expected a listed file',
            ),
            (lambda path: edit_json(path, lambda value: value["files"].clear()), "expected a listed file that ends in"),
            (
                lambda path: edit_json(path, lambda value: value.update(colour=1)),
                "colour is unknown; expected variant,",
            ),
            (
                lambda path: edit_json(path, lambda value: value.update(mapped_bytes="x")),
                'mapped_bytes is "x"; expected',
            ),
        ],
    )
    def test_a_damaged_manifest_is_refused(
        self, sdrpn: Command, bundle: Path, damage: Callable[[Path], object], told: str
    ) -> None:
        damage(optimized(sdrpn, bundle) / OPTIMIZED_NAME)
        with pytest.raises(BadBundle, match=told) as error:
            Session.open(bundle, variant="fused-fp32")
        assert "\n" not in str(error.value)

    def test_a_folder_elsewhere_is_refused(self, sdrpn: Command, bundle: Path, tmp_path: Path) -> None:
        folder = optimized(sdrpn, bundle)
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(BadBundle, match="is a link that leaves"):
            Session.open(bundle, variant="fused-fp32")

    def test_weights_of_another_file_are_refused(self, sdrpn: Command, bundle: Path) -> None:
        """The graph is listed with its digest; what it reads is not."""
        folder = optimized(sdrpn, bundle)
        graph = folder / "trunk.onnx"
        content = with_files(graph.read_bytes(), lambda name: "../../../weights/trunk.fp32.bin")
        graph.write_bytes(content)
        info = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edit_json(folder / OPTIMIZED_NAME, lambda value: value["files"].update({"trunk.onnx": info}))
        with pytest.raises(
            BadBundle, match=r"takes weights from '\.\./\.\./\.\./weights/trunk\.fp32\.bin', which is not"
        ):
            Session.open(bundle, variant="fused-fp32")

    def test_a_changed_file_is_refused(self, sdrpn: Command, bundle: Path) -> None:
        path = optimized(sdrpn, bundle) / "trunk.onnx.data"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(
            BadBundle, match=r"trunk\.onnx\.data was changed: its SHA-256 is .*; make them again: sdrpn optimize"
        ):
            Session.open(bundle, variant="fused-fp32")
        path.write_bytes(data[:-1])
        with pytest.raises(BadBundle, match=r"trunk\.onnx\.data has \d+ bytes, the manifest says \d+; make them again"):
            Session.open(bundle, variant="fused-fp32", verify=False)


def replace_by(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def note_of(bundle: Path, variant: str = "fused-fp32") -> str:
    with Session.open(bundle, variant=variant, threads=1) as session:
        session.answer_ids(photo(), BEFORE, AFTER, max_new_tokens=1)
        assert session.backend_note is not None
        return session.backend_note


class TestRefusals:
    def test_group_query_attention_without_attention_operators(self, sdrpn: Command, bundle: Path) -> None:
        outcome = sdrpn("optimize", bundle, "--variant", "primitive-fp32", "--attention", "group-query")
        assert (
            refusal(outcome)
            == "primitive-fp32 has no attention operators to replace; leave it as it is (--attention standard)"
        )

    def test_group_query_attention_where_graphs_are_cut_for_engines(self, sdrpn: Command, bundle: Path) -> None:
        outcome = sdrpn("optimize", bundle, "--variant", HALF, "--attention", "group-query")
        assert (
            refusal(outcome)
            == f"{HALF} computes in fp16 and is cut for engines; leave it as it is (--attention standard)"
        )

    def test_the_shipped_bundle(self, sdrpn: Command) -> None:
        message = refusal(sdrpn("optimize", "demo"))
        assert "nothing is written there; optimise a copy of it: cp -r " in message

    def test_group_query_attention_with_a_scale_for_every_row(self, sdrpn: Command, bundle: Path) -> None:
        outcome = sdrpn("optimize", bundle, "--variant", CODED, "--attention", "group-query")
        expected = (
            f"{CODED} has a scale for every row of its caches, and ONNX Runtime's operator takes one for all; "
            "leave it as it is (--attention standard)"
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

    @pytest.mark.skipif(resource is None, reason="no limits of files here")
    @pytest.mark.parametrize(
        ("library", "told"),
        [
            (
                "onnxruntime",
                r"could not write rpn\.onnx \(.*Failed to write .*\); its disk has .* free: free some space",
            ),
            ("openvino", r"OpenVINO .* could not write rpn\.xml \(.*\); its disk has .* free: free some space and try"),
        ],
    )
    def test_a_disk_that_fills_up(self, sdrpn: Command, bundle: Path, library: str, told: str) -> None:
        """As far as files may not grow: what the libraries say of it does not tell that the disk is full."""
        if library == "openvino":
            pytest.importorskip("openvino")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            outcome = sdrpn("optimize", bundle, "--threads", 1, "--variant", INT4, "--for", library)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert re.search(f"the rpn graph was not saved: .*{told}", refusal(outcome, 1))
        assert list(bundle.glob("optimized/*/*")) == []

    def test_weights_that_are_not_listed(self, bundle: Path, tmp_path: Path) -> None:
        path, graph = graph_of(open_bundle(bundle), "trunk")
        content = with_files(path.read_bytes(), lambda name: "../elsewhere.bin")
        with pytest.raises(BadBundle, match=r"takes weights from '\.\./elsewhere\.bin', which is not listed as a file"):
            save_graph(graph, content, bundle, tmp_path / "trunk.onnx", 1)

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
    manifest = OptimizedManifest(
        "v", "1.32", "cpu", "ab", "standard", "cd", {"trunk": "t.onnx"}, {"t.onnx": FileInfo(3, "0" * 64)}, 5
    )
    assert OptimizedManifest.from_json(json.loads(manifest.to_text())) == manifest
