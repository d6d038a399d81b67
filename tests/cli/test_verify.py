"""`sdrpn verify`: what passes, what is written into the engines' manifests, what fails, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sdrpn.bundle import open_bundle
from sdrpn.checkpoint import write_random_checkpoint
from sdrpn.engine_manifest import engine_paths, read_engine_manifest
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.spec import ModelSpec
from sdrpn.tolerances import tolerances_of
from tests.cli.command import Command, refusal
from tests.cli.test_compare import negate_first_weight, weight_file
from tests.damage import copied
from tests.export.calibration import Largest
from tests.runtime.engine_files import TARGET, write_engines

GRAPHS = ("vision", "trunk", "rpn", "tail")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is only slowed down by more
    yield
    torch.set_num_threads(threads)


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


def test_a_checkpoint_that_is_not_found(sdrpn: Command, bundle: Path) -> None:
    message = refusal(sdrpn("verify", bundle, "--target", TARGET))
    assert message == (
        f"the checkpoint of {bundle}, checkpoint, is neither here nor beside the bundle; "
        "say where it is with --checkpoint"
    )


def test_another_checkpoint(sdrpn: Command, bundle: Path, tiny_spec: ModelSpec) -> None:
    """Found by its name beside the bundle, and refused by its digest."""
    write_random_checkpoint(bundle.parent / "checkpoint", tiny_spec, seed=7)
    message = refusal(sdrpn("verify", bundle, "--target", TARGET))
    assert "was not exported from" in message
    assert "digest is " in message


def test_an_unknown_target(sdrpn: Command, bundle: Path, tiny_checkpoint: Path) -> None:
    message = refusal(sdrpn("verify", bundle, "--target", "rtx-1", "--checkpoint", tiny_checkpoint))
    assert "no target 'rtx-1'" in message
