"""`sdrpn verify`: what passes, what is written into the engines' manifests, what fails, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sdrpn.bundle.bundle import open_bundle
from sdrpn.bundle.engine_manifest import ParityGate, engine_paths, read_engine_manifest, write_engine_manifest
from sdrpn.bundle.tolerances import tolerances_of
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.method.spec import ModelSpec
from sdrpn.runtime import select as choice
from sdrpn.runtime.backends import tensorrt_info
from sdrpn.runtime.engines import platform as platform_module
from sdrpn.runtime.engines import preflight
from tests.cli.command import Command, Outcome, refusal
from tests.cli.test_verify_exact import negate_first_weight, weight_file
from tests.damage import copied
from tests.export.calibration import Largest
from tests.runtime.engine_files import TARGET, platform, write_engines

if TYPE_CHECKING:
    from tests.runtime.fake_tensorrt import Compute

GRAPHS = ("vision", "trunk", "rpn", "tail")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """With engines of fused-fp32 that are none, but whose manifests are good."""
    bundle = copied(tiny_bundle, tmp_path)
    write_engines(open_bundle(bundle))
    return bundle


def test_it_passes_and_is_kept(sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
    outcome = sdrpn("verify", bundle, "--target", TARGET, "--checkpoint", tiny_checkpoint, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert (report["ok"], report["target"], list(report["gates"])) == (True, TARGET, ["fused-fp32"])
    found = report["gates"]["fused-fp32"]
    measured = {(gate["graph"], gate["kind"]) for gate in found}
    assert measured == {
        *((graph, kind) for graph in GRAPHS for kind in ("values", "mean", "cosine")),
        ("vision", "noise"),
        *(("answer", kind) for kind in ("roi cosine", "box IoU", "same crops", "token agreement")),
    }
    # Every layer is seen: each has its keys and values.
    tensors = {check["tensor"].split(",")[0] for check in report["checks"]}
    assert {f"{kind}_cache.{layer}_out" for kind in ("key", "value") for layer in range(4)} <= tensors
    assert report["engines"].startswith("not run here: ")
    for graph in GRAPHS:
        kept = read_engine_manifest(engine_paths(bundle, TARGET, graph)[1]).parity
        assert {gate.graph for gate in kept} == {graph, "answer"}
        assert all(gate.ok for gate in kept)


def test_engines_of_another_target_are_made_of_the_same_graphs(
    sdrpn: Command, bundle: Path, tiny_checkpoint: Path
) -> None:
    """What was found of the graphs holds for them; how they answered is theirs alone."""
    write_engines(open_bundle(bundle), target="other")
    path = engine_paths(bundle, "other", "trunk")[1]
    ran = ParityGate("engines", "token agreement", "7 questions", 1.0, 1.0, 1, True)
    write_engine_manifest(path, dataclasses.replace(read_engine_manifest(path), parity=(ran,)))
    outcome = sdrpn("verify", bundle, "--target", TARGET, "--checkpoint", tiny_checkpoint)
    assert outcome.code == 0, outcome.err
    there, here = (read_engine_manifest(engine_paths(bundle, name, "trunk")[1]).parity for name in ("other", TARGET))
    assert there == (*here, ran)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_precisions_of_engines(sdrpn: Command, tiny_checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    """As ONNX Runtime computes them, or by simulation; what fp16 has to hold is watched where there is fp16."""
    calibration = Largest() if precision == "nvfp4" else None
    options = ExportOptions(precision, calibration=calibration.digest if calibration else None)
    export_bundle(tiny_checkpoint, tmp_path / "bundle", options, calibration=calibration)
    write_engines(open_bundle(tmp_path / "bundle"), f"fused-{precision}")
    outcome = sdrpn("verify", tmp_path / "bundle", "--target", TARGET, "--checkpoint", tiny_checkpoint, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["gates"][f"fused-{precision}"]
    assert ("trunk", "peak") in {(gate["graph"], gate["kind"]) for gate in found} or precision == "bf16"
    limit = tolerances_of(precision).values
    assert {gate["limit"] for gate in found if gate["kind"] == "values"} == {limit}
    assert max(gate["found"] for gate in found if gate["kind"] == "values") > 1e-3  # it was rounded
    assert read_engine_manifest(engine_paths(tmp_path / "bundle", TARGET, "tail")[1]).parity
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_below_a_gate(sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
    negate_first_weight(bundle, weight_file(bundle, "trunk"))
    shutil.rmtree(bundle / "engines")
    write_engines(open_bundle(bundle))
    outcome = sdrpn("verify", bundle, "--target", TARGET, "--checkpoint", tiny_checkpoint, "--json")
    assert outcome.code == 1
    assert "gates failed, first fused-fp32 trunk, values of " in outcome.err
    report = json.loads(outcome.out)
    assert report["ok"] is False
    failed = {gate["graph"] for gate in report["gates"]["fused-fp32"] if not gate["ok"]}
    assert "trunk" in failed
    assert failed.isdisjoint({"vision", "rpn", "tail"})  # each graph is judged by itself
    kept = read_engine_manifest(engine_paths(bundle, TARGET, "trunk")[1]).parity
    assert not all(gate.ok for gate in kept)


def test_engines_of_other_graphs_keep_what_they_say(sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
    """An engine of a file that is there no more is not vouched for; the table is printed for the rest."""
    path = engine_paths(bundle, TARGET, "tail")[1]
    before = read_engine_manifest(path).parity
    negate_first_weight(bundle, weight_file(bundle, "tail"))
    outcome = sdrpn("verify", bundle, "--target", TARGET, "--checkpoint", tiny_checkpoint)
    assert outcome.code == 1
    assert read_engine_manifest(path).parity == before
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["variant", "graph", "measure", "gate", "worst", "where"]
    assert any(line.split()[1:4] == ["tail", "values", "FAILED"] for line in lines)
    assert lines[-1].endswith("gates passed")


class TestEngines:
    """Where a GPU fits them they answer as well; here one that is simulated."""

    @pytest.fixture
    def verify(
        self, sdrpn: Command, tiny_bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[[Compute | None], Outcome]:
        pytest.importorskip("cuda.bindings.runtime")
        from tests.runtime.gpu import fake_gpu

        def run(compute: Compute | None) -> Outcome:
            gpu = fake_gpu(tiny_bundle, tmp_path, compute=compute)
            for module in (platform_module, choice):
                monkeypatch.setattr(module, "read_platform", lambda device=0: platform("tensorrt"))
            monkeypatch.setattr(preflight, "open_library", lambda flavour: Silent())
            monkeypatch.setattr(tensorrt_info, "open_tensorrt", lambda *arguments, host_code: gpu.backend())
            options = ("--target", TARGET, "--checkpoint", tiny_checkpoint, "--json")
            outcome = sdrpn("verify", gpu.bundle.path, *options)
            assert gpu.trt.executions
            assert gpu.cuda.violations == []
            kept = read_engine_manifest(engine_paths(gpu.bundle.path, TARGET, "trunk")[1]).parity
            assert {gate.graph for gate in kept} == {"trunk", "answer", "engines"}
            return outcome

        return run

    def test_they_answer_the_same_questions(self, verify: Callable[[Compute | None], Outcome]) -> None:
        outcome = verify(None)
        assert outcome.code == 0, outcome.err
        report = json.loads(outcome.out)
        assert report["engines"] == "ran"
        found = {gate["kind"]: gate for gate in report["gates"]["fused-fp32"] if gate["graph"] == "engines"}
        assert found.keys() == {"roi cosine", "box IoU", "same crops", "token agreement"}
        assert all(gate["ok"] for gate in found.values())

    def test_ones_that_compute_something_else(
        self, verify: Callable[[Compute | None], Outcome], tiny_bundle: Path
    ) -> None:
        """The graphs that they were made of are right, and are not blamed."""
        from tests.runtime.engines.test_trial_run import spoilt
        from tests.runtime.gpu import onnxruntime_compute

        right = onnxruntime_compute(open_bundle(tiny_bundle), "fused-fp32")
        outcome = verify(spoilt(right, "tail", "logits", 100.0))
        assert outcome.code == 1
        assert re.search(r"1 of 21 gates failed, first fused-fp32 engines, token agreement of ", outcome.err)
        assert outcome.err.endswith("; the graphs are right: build the engines with another release of their library\n")


class Silent:
    def validity(self, path: Path) -> None:
        return None


def test_a_checkpoint_that_is_not_found(sdrpn: Command, bundle: Path) -> None:
    message = refusal(sdrpn("verify", bundle, "--target", TARGET))
    assert message == (
        f"the checkpoint of {bundle}, checkpoint, is neither here nor beside the bundle; say where it is (--checkpoint)"
    )


def test_another_checkpoint(sdrpn: Command, bundle: Path, tiny_spec: ModelSpec) -> None:
    """Found by its name beside the bundle, and refused by its digest."""
    write_random_checkpoint(bundle.parent / "checkpoint", tiny_spec, seed=7)
    message = refusal(sdrpn("verify", bundle, "--target", TARGET))
    assert "was not exported from" in message
    assert "digest is " in message


def test_a_target_of_the_user(sdrpn: Command, bundle: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Its engines lie under the name of its file."""
    write_engines(open_bundle(bundle), target="mine")
    mine = tmp_path / "mine.toml"
    mine.write_text("not read: the engines say what they were made of")
    outcome = sdrpn("verify", bundle, "--target", mine, "--checkpoint", tiny_checkpoint)
    assert outcome.code == 0, outcome.err
    assert "engines: not run here: " in outcome.out
    assert read_engine_manifest(engine_paths(bundle, "mine", "trunk")[1]).parity


def test_an_unknown_target(sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
    message = refusal(sdrpn("verify", bundle, "--target", "rtx-1", "--checkpoint", tiny_checkpoint))
    assert "no target 'rtx-1'" in message
