"""Every way in which a build's process can end is reported as such, and none is left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sdrpn.engines.children import Job, run_jobs
from sdrpn.errors import BadInput, RunFailed

FAKE_JOB = """
import json, os, signal, sys, time
events = os.fdopen(int(sys.argv[1]), "w", buffering=1)
request = json.loads(sys.stdin.readline())
def tell(**value):
    events.write(json.dumps(value) + "\\n")
open(request["pid_file"], "w").write(str(os.getpid()))
exec(request["do"])
"""


@pytest.fixture(autouse=True)
def _fake_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake_job.py").write_text(FAKE_JOB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def job(tmp_path: Path, do: str, name: str = "trunk") -> Job:
    return Job(name, {"do": do, "pid_file": str(tmp_path / f"{name}.pid")}, module="fake_job")


def run(tmp_path: Path, *does: str, at_once: int = 1) -> list[str]:
    jobs = [job(tmp_path, do, f"graph{index}") for index, do in enumerate(does)]
    return [outcome.name for outcome, _ in run_jobs(jobs, at_once=at_once, advance=lambda name, percent: None)]


def alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_results_and_progress(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    jobs = [job(tmp_path, "tell(event='progress', percent=40); tell(event='done', size=3)")]
    ((one, result),) = run_jobs(jobs, at_once=1, advance=lambda name, percent: told.append((name, percent)))
    assert (one.name, result["size"], told) == ("trunk", 3, [("trunk", 40)])


def test_two_at_once(tmp_path: Path) -> None:
    """The first waits for a file that the second makes."""
    flag = str(tmp_path / "flag")
    first = f"\nwhile not os.path.exists({flag!r}): time.sleep(0.01)\ntell(event='done')"
    second = f"open({flag!r}, 'w'); tell(event='done')"
    assert sorted(run(tmp_path, first, second, at_once=2)) == ["graph0", "graph1"]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"graph0 was killed \(signal 9\), .* memory runs out; use fewer jobs"),
        ("print('bad graph', flush=True); os.kill(os.getpid(), signal.SIGSEGV)", r"SIGSEGV \(its output: bad graph\)"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("pass", "ended with exit code 0"),
        ("raise ValueError('no such thing')", r"exit code 1 \(its output: ValueError: no such thing\)"),
        ("tell(event='os_error', errno=28, message='x')", "the disk is full: writing the engine of graph0"),
        ("tell(event='os_error', errno=5, message='bad disk')", "building graph0 failed: bad disk"),
    ],
)
def test_endings(tmp_path: Path, do: str, message: str) -> None:
    with pytest.raises(RunFailed, match=message):
        run(tmp_path, do)


def test_a_refusal_keeps_its_kind(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no kernel for that"):
        run(tmp_path, "tell(event='refused', kind='BadInput', message='no kernel for that')")


def test_a_failure_ends_the_others(tmp_path: Path) -> None:
    pid = str(tmp_path / "graph0.pid")
    second = f"\nwhile not os.path.exists({pid!r}): time.sleep(0.01)\nsys.exit(3)"
    with pytest.raises(RunFailed, match="graph1"):
        run(tmp_path, "time.sleep(60)", second, at_once=2)
    assert not alive(tmp_path / "graph0.pid")


def test_whoever_stops_listening_ends_all(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "tell(event='done')", "quick"), job(tmp_path, "time.sleep(60)", "slow")]
    results = run_jobs(jobs, at_once=2, advance=lambda name, percent: None)
    next(iter(results))
    while not (tmp_path / "slow.pid").exists() or not (tmp_path / "slow.pid").read_text():
        time.sleep(0.01)
    results.close()
    assert not alive(tmp_path / "slow.pid")
