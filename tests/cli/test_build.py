"""`sdrpn build`: what it prints, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sdrpn.bundle.bundle import file_digest, open_bundle
from sdrpn.engines import target as target_module
from sdrpn.export import ExportOptions, export_bundle
from sdrpn.runtime.engines.engine_set import EngineSet, engine_sets
from sdrpn.runtime.engines.platform import read_platform
from sdrpn.runtime.engines.preflight import Problem, check_engines
from sdrpn.workflows import engine_trial
from tests.cli.command import Command, refusal
from tests.damage import edit_json
from tests.limits import eventually

pytest.importorskip("tensorrt_rtx_bindings")

TARGET = ("--target", "rtx-4090")


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    path = tmp_path_factory.mktemp("build") / "bundle"
    export_bundle(tiny_checkpoint, path, ExportOptions("fp16"))
    return path


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def engines(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "engines").rglob("*") if path.is_file() and path.name != ".lock")


def test_it_builds_and_then_keeps(sdrpn: Command, bundle: Path) -> None:
    first = sdrpn("build", bundle, *TARGET, "--graphs", "vision,rpn")
    assert (first.code, first.err) == (0, f"sdrpn: engines: {bundle / 'engines' / 'rtx-4090'}\n")
    head, *rows = first.out.splitlines()
    assert head.split("  ")[0] == "graph"
    *rows, last = rows
    assert last.startswith("on this machine: ")
    assert [row.split()[0] for row in rows] == ["vision", "rpn"]
    assert all(row.endswith("passed") for row in rows)
    second = sdrpn("build", bundle, *TARGET, "--graphs", "vision,rpn")
    assert [" kept " in row for row in second.out.splitlines()[1:-1]] == [True, True]


def test_json(sdrpn: Command, bundle: Path) -> None:
    options = ("--graphs", "vision", "--max-context", 128, "--opt-level", 2, "--json")
    found = sdrpn("build", bundle, *TARGET, *options).json()
    (engine,) = found["engines"]
    path = bundle / "engines" / "rtx-4090" / "vision.engine"
    assert (engine["graph"], engine["engine"], engine["cached"]) == ("vision", str(path), False)
    assert engine["size_bytes"] == path.stat().st_size
    assert (found["variant"], found["max_context"]) == ("fused-fp16", 128)
    assert found["estimate"]["host_bytes"] > 400_000_000


def test_several_contexts(sdrpn: Command, tiny_checkpoint: Path, bundle: Path) -> None:
    export_bundle(tiny_checkpoint, bundle, ExportOptions("fp16", "primitive"))
    options = ("--graphs", "rpn", "--max-context", "128,64", "--json")
    found = sdrpn("build", bundle, *TARGET, *options).json()
    assert (found["variant"], found["contexts"], found["max_context"]) == ("primitive-fp16", [64, 128], 128)
    assert [(engine["variant"], engine["kernel_verdict"]) for engine in found["engines"]] == [
        ("primitive-fp16", "passed")
    ]
    shown = json.loads(sdrpn("inspect", bundle, "--engines", "--json").out)["targets"]
    assert shown[0]["engines"]["rpn"]["manifest"]["contexts"] == [64, 128]
    assert shown[0]["engines"]["rpn"]["kernel_verdict"] == "passed"


def test_a_dry_run_writes_nothing(sdrpn: Command, bundle: Path) -> None:
    outcome = sdrpn("build", bundle, *TARGET, "--dry-run")
    assert outcome.code == 0
    assert [line.split("  ")[-1].strip() for line in outcome.out.splitlines()[-4:]] == ["would be built"] * 4
    found = sdrpn("build", bundle, *TARGET, "--dry-run", "--json").json()
    assert [engine["cached"] for engine in found["engines"]] == [False] * 4
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "rtx-1"), "no target 'rtx-1'"),
        (("--target", "jetson-orin-nx-jp62"), "needs variant primitive-int4 or primitive-fp16 or primitive-bf16; "),
        (("--target", "h100"), "tensorrt is not installed here"),
        ((*TARGET, "--graphs", "trunk,head"), "no graph head; it has vision, trunk, rpn, tail"),
        ((*TARGET, "--max-context", 32), "an image and a crop and one token take 33 positions"),
        ((*TARGET, "--max-context", 257), "is above the bundle's 256"),
        ((*TARGET, "--opt-level", 6), "argument --opt-level: 6 is unknown; expected one of"),
        ((*TARGET, "--precision", "int4"), "needs variant fused-int4; "),
        ((*TARGET, "--kv-cache", "int8"), "needs variant primitive-fp8-kv-int8 or "),
        ((*TARGET, "--timing-cache", "t"), "a timing cache does not apply to tensorrt-rtx"),
        ((*TARGET, "--hardware-compat"), "tensorrt-rtx has no hardware compatibility; list all compute_capabilities"),
        ((*TARGET, "--version-compatible"), "run only with the release that built them"),
        ((*TARGET, "--profiling-verbosity", "none"), "turn the gate off to build without it (--no-kernel-gate)"),
        ((*TARGET, "--max-context", "64,x"), "argument --max-context: 'x' is not a whole number"),
        ((*TARGET, "--max-context", "64,64"), "argument --max-context: '64,64' lists a length twice"),
        ((*TARGET, "--max-context", "16,128"), "needs variant primitive-fp8 or "),
        ((*TARGET, "--max-context", "64,128"), "(several contexts, or the given dialect, need this)"),
        ((*TARGET, "--max-context", "64,128", "--dialect", "fused"), "the dialect fused cannot be used here"),
        ((*TARGET, "--device", 0), "a device does not apply to tensorrt-rtx"),
        (("--target", "h100", "--device", -1), "device is -1; expected 0 or the number of another GPU"),
        ((), "the following arguments are required: --target"),
    ],
)
def test_bad_requests(sdrpn: Command, bundle: Path, options: tuple[object, ...], message: str) -> None:
    assert message in refusal(sdrpn("build", bundle, *options))
    assert not (bundle / "engines").exists()


def test_a_dry_run_says_what_does_not_fit(sdrpn: Command, bundle: Path, tmp_path: Path) -> None:
    """And how much is missing, before anything is built."""
    small = tmp_path / "small.toml"
    text = target_module._FOLDER.joinpath("rtx-4090.toml").read_text(encoding="utf-8")
    small.write_text(f'{text.replace("memory_gb = 24", "memory_gb = 0.001")}note = "only a test"\n', encoding="utf-8")
    (shortage,) = sdrpn("build", bundle, "--target", small, "--dry-run", "--json").json()["shortages"]
    assert re.search(r"GeForce RTX 4090 has 1\.0 MB: .* are missing; no context fits beside", shortage)
    lines = sdrpn("build", bundle, "--target", small, "--dry-run").out.splitlines()
    assert re.split("  +", lines[-2]) == ["but", shortage]
    assert re.split("  +", lines[-1]) == ["note", "only a test"]
    assert refusal(sdrpn("build", bundle, "--target", small), 1) == f"{shortage} (--no-memory-check)"
    assert not (bundle / "engines").exists()


def test_a_graph_that_the_library_cannot_read(sdrpn: Command, bundle: Path) -> None:
    """The operator and where it stands are named; nothing is left behind."""
    import onnx

    path = bundle / "vision.fused-fp16.onnx"
    model = onnx.load(path, load_external_data=False)
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    attention.op_type = "Mystery"
    onnx.save(model, path)

    def list_it_anew(manifest: dict[str, Any]) -> None:
        entry = manifest["files"][path.name]
        entry["size_bytes"], entry["sha256"] = path.stat().st_size, file_digest(path)

    edit_json(bundle / "manifest.json", list_it_anew)
    message = refusal(sdrpn("build", bundle, *TARGET, "--graphs", "vision"))
    assert re.search(
        rf"tensorrt-rtx 1\.\S+ cannot read {path}: Mystery {attention.name}: .*; export the other", message
    )
    assert engines(bundle) == []


def test_what_a_device_elsewhere_would_need(sdrpn: Command, bundle: Path) -> None:
    """Without TensorRT: variant, memory, and why it cannot be built here."""
    found = sdrpn("build", bundle, "--target", "h100", "--dry-run", "--json").json()
    assert (found["variant"], found["library"]) == ("fused-fp16", "tensorrt none")
    assert found["obstacle"].startswith("tensorrt is not installed here; it comes with JetPack")
    last = sdrpn("build", bundle, "--target", "h100", "--dry-run").out.splitlines()[-1]
    assert last.startswith("but not here")


def test_commands_for_trtexec(sdrpn: Command, bundle: Path) -> None:
    outcome = sdrpn("build", bundle, "--target", "h100", "--print-trtexec", "--timing-cache", "t.cache")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split()[0] for line in outcome.out.splitlines()[2::3]] == ["trtexec"] * 4
    assert subprocess.run(["bash", "-n"], input=outcome.out, text=True, check=False).returncode == 0
    assert not (bundle / "engines").exists()


def test_an_engine_without_a_list_of_kernels(sdrpn: Command, bundle: Path) -> None:
    options = ("--graphs", "vision", "--profiling-verbosity", "none", "--no-kernel-gate", "--json")
    (engine,) = sdrpn("build", bundle, *TARGET, *options).json()["engines"]
    assert (engine["kernels"], engine["kernel_gate"]) == (0, ["not judged: the library listed no kernels"])


def test_without_a_gpu_nothing_is_tried(sdrpn: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done where a GPU fits the engines: tests/workflows/test_engine_trial.py."""
    nowhere = dataclasses.replace(read_platform(), gpu=None, cuda_fault="no driver; see doctor")
    monkeypatch.setattr(engine_trial, "read_platform", lambda device=0: nowhere)
    options = ("build", bundle, *TARGET, "--graphs", "vision")
    assert sdrpn(*options).out.endswith("on this machine: not tried: CUDA_ERROR: here is no GPU: no driver\n")
    assert sdrpn(*options).out.endswith("on this machine: nothing new to try\n")
    assert sdrpn(*options, "--json").json()["trial"] == {"state": "nothing new to try", "gates": []}


def test_not_a_bundle(sdrpn: Command, tmp_path: Path) -> None:
    assert "has no manifest.json" in refusal(sdrpn("build", tmp_path, *TARGET))


def started(bundle: Path) -> subprocess.Popen[bytes]:
    """A build of the trunk whose child process is about to be started."""
    command = [sys.executable, "-m", "sdrpn.cli.main", "build", str(bundle), *TARGET, "--graphs", "trunk"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    folder = bundle / "engines" / "rtx-4090"
    eventually(lambda: folder.exists() or process.poll() is not None)  # it is made right before
    assert process.poll() is None
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle(sdrpn: Command, bundle: Path, number: signal.Signals, code: int) -> None:
    """Nothing is left, and the next run succeeds."""
    process = started(bundle)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == code
    assert engines(bundle) == []
    assert sdrpn("build", bundle, *TARGET, "--graphs", "trunk").code == 0
    assert engines(bundle) == ["trunk.engine", "trunk.engine.json", "trunk.layers.json"]


@pytest.mark.parametrize("moments", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_build_that_is_killed_at_random_moments(sdrpn: Command, bundle: Path, moments: int) -> None:
    """Signal 9 leaves no engine that loads, whenever it comes, and the next run succeeds.

    The child of a killed build ends when it notices; it installs nothing by itself.
    """
    begin_s = time.monotonic()
    process = started(bundle)
    process.communicate(timeout=600)
    assert process.returncode == 0
    whole_s = time.monotonic() - begin_s
    rng = random.Random(0)
    for _ in range(moments):
        shutil.rmtree(bundle / "engines")
        begin_s = time.monotonic()
        process = started(bundle)
        # Later ones find it done, which is a moment as well.
        time.sleep(max(0.0, rng.uniform(0, whole_s) - (time.monotonic() - begin_s)))
        process.kill()
        process.communicate(timeout=120)
        if process.returncode == 0:
            continue
        found = [targets for targets in engine_sets(open_bundle(bundle)) if targets.manifests]
        # A manifest is written last: where there is one, everything was in its place.
        assert [problem for targets in found for problem in broken(targets)] == []
    assert sdrpn("build", bundle, *TARGET, "--graphs", "trunk").code == 0
    assert engines(bundle) == ["trunk.engine", "trunk.engine.json", "trunk.layers.json"]
    (last,) = engine_sets(open_bundle(bundle))
    assert broken(last) == []


def broken(engines: EngineSet) -> list[Problem]:
    """What is wrong with the engines that are there, on any machine."""
    there = dataclasses.replace(engines, missing=())
    return [problem for problem in check_engines(there, read_platform()) if problem.broken]


def test_progress_is_told_to_a_terminal(bundle: Path) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "sdrpn.cli.main", "build", str(bundle), *TARGET, "--graphs", "vision"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            shown += piece
    os.close(leader)
    assert process.returncode == 0
    assert b"build" in shown
    assert b"100/100" in shown


@pytest.mark.parametrize("look", ["--dry-run", "--print-trtexec"])
def test_a_look_at_a_build_refuses_the_place_that_the_build_refuses(
    sdrpn: Command, bundle: Path, tmp_path: Path, look: str
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert "is a file; expected a new or an empty folder" in refusal(
        sdrpn("build", bundle, *TARGET, look, "--out", taken)
    )
    assert refusal(sdrpn("build", bundle, *TARGET, look, "--out", tmp_path)).endswith("or name another folder")
    assert taken.read_text() == "a file"
