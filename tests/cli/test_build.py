"""`sdrpn build`: what it prints, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdrpn.export import ExportOptions, export_bundle
from tests.cli.command import Command, refusal

pytest.importorskip("tensorrt_rtx_bindings")

TARGET = ("--target", "rtx-4090")


@pytest.fixture
def bundle(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    export_bundle(tiny_checkpoint, tmp_path / "bundle", ExportOptions("fp16"))
    return tmp_path / "bundle"


def engines(bundle: Path) -> list[str]:
    return sorted(path.name for path in (bundle / "engines").rglob("*") if path.is_file() and path.name != ".lock")


def test_it_builds_and_then_keeps(sdrpn: Command, bundle: Path) -> None:
    first = sdrpn("build", bundle, *TARGET, "--graphs", "vision,rpn")
    assert (first.code, first.err) == (0, "")
    head, *rows = first.out.splitlines()
    assert head.split("  ")[0] == "graph"
    assert [row.split()[0] for row in rows] == ["vision", "rpn"]
    assert all(row.endswith("passed") for row in rows)
    second = sdrpn("build", bundle, *TARGET, "--graphs", "vision,rpn")
    assert [" kept " in row for row in second.out.splitlines()[1:]] == [True, True]


def test_json(sdrpn: Command, bundle: Path) -> None:
    options = ("--graphs", "vision", "--max-context", 128, "--opt-level", 2, "--json")
    found = sdrpn("build", bundle, *TARGET, *options).json()
    (engine,) = found["engines"]
    path = bundle / "engines" / "rtx-4090" / "vision.engine"
    assert (engine["graph"], engine["engine"], engine["cached"]) == ("vision", str(path), False)
    assert engine["size_bytes"] == path.stat().st_size
    assert (found["variant"], found["max_context"]) == ("fused-fp16", 128)
    assert found["estimate"]["host_bytes"] > 400_000_000


def test_a_dry_run_writes_nothing(sdrpn: Command, bundle: Path) -> None:
    outcome = sdrpn("build", bundle, *TARGET, "--dry-run")
    assert outcome.code == 0
    assert [line.split("  ")[-1].strip() for line in outcome.out.splitlines()[-4:]] == ["would be built"] * 4
    found = sdrpn("build", bundle, *TARGET, "--dry-run", "--json").json()
    assert [one["cached"] for one in found["engines"]] == [False] * 4
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "rtx-1"), "no target 'rtx-1'"),
        (("--target", "jetson-orin-nx-jp62"), "takes variant primitive-int4 or primitive-fp16; "),
        (("--target", "h100"), "tensorrt is not installed here"),
        ((*TARGET, "--graphs", "trunk,head"), "no graph head; it has vision, trunk, rpn, tail"),
        ((*TARGET, "--max-context", 32), "an image and a crop and one token take 33 positions"),
        ((*TARGET, "--max-context", 257), "is above the bundle's 256"),
        ((*TARGET, "--opt-level", 6), "argument --opt-level: invalid choice: 6"),
        ((), "the following arguments are required: --target"),
    ],
)
def test_bad_requests(sdrpn: Command, bundle: Path, options: tuple[object, ...], message: str) -> None:
    assert message in refusal(sdrpn("build", bundle, *options))
    assert not (bundle / "engines").exists()


def test_not_a_bundle(sdrpn: Command, tmp_path: Path) -> None:
    assert "has no manifest.json" in refusal(sdrpn("build", tmp_path, *TARGET))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_in_the_middle(sdrpn: Command, bundle: Path, number: signal.Signals, code: int) -> None:
    """Nothing that loads is left, and the next run succeeds."""
    command = [sys.executable, "-m", "sdrpn.cli.main", "build", str(bundle), *TARGET, "--graphs", "trunk"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    folder = bundle / "engines" / "rtx-4090"
    while not folder.exists():  # made right before the child is started
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert engines(bundle) == []
    assert not any(path.name == "trunk.engine.json" for path in folder.iterdir())
    # The orphan of a killed build ends when it notices; it may not install anything by itself.
    assert sdrpn("build", bundle, *TARGET, "--graphs", "trunk").code == 0
    assert engines(bundle) == ["trunk.engine", "trunk.engine.json", "trunk.layers.json"]


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
